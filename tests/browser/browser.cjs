// What the scripts beside it share: their argument, Chromium, and the way into Airflow.
const { chromium } = require("playwright-core");

const given = JSON.parse(process.argv[2]);

// Does the work in a Chromium that is closed after it; exit 2 when it fails.
function inChromium(work) {
  const main = async () => {
    const browser = await chromium.launch({
      executablePath: given.chromium,
      args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync"],
    });
    try {
      await work(browser);
    } finally {
      await browser.close();
    }
  };
  main().catch((problem) => { console.error(problem); process.exit(2); });
}

// A desktop's page, each of whose steps may take so long.
async function desktop(browser, timeout) {
  const page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
  page.setDefaultTimeout(timeout);
  return page;
}

// Signs in to Airflow; `filled` is awaited when the form is filled and not yet sent.
async function signIn(page, filled = async () => {}) {
  await page.goto(given.url);
  await page.fill("input[name=username]", given.user);
  await page.fill("input[name=password]", given.password);
  await filled();
  await page.click("button[type=submit]");
  await page.waitForURL((url) => !url.pathname.includes("login"));
}

module.exports = { given, inChromium, desktop, signIn };
