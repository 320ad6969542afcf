// Signs in to Airflow and opens the line's page from its navigation.
// node inside.cjs '{"url","user","password","out","chromium"}': prints one JSON line: what the
// page's state says in Airflow's frame, where that frame is, and the errors of the console.
const { chromium } = require("playwright-core");
const path = require("path");

const given = JSON.parse(process.argv[2]);

async function main() {
  const browser = await chromium.launch({
    executablePath: given.chromium,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  const page = await browser.newPage({ viewport: { width: 1440, height: 900 } });
  page.setDefaultTimeout(60_000);
  const refused = [];
  page.on("console", (said) => { if (/Refused|Content Security/.test(said.text())) refused.push(said.text()); });
  try {
    await page.goto(given.url);
    await page.fill("input[name=username]", given.user);
    await page.fill("input[name=password]", given.password);
    await page.click("button[type=submit]");
    await page.waitForURL((url) => !url.pathname.includes("login"));
    await page.getByRole("link", { name: "Headrace" }).first().click();
    const frame = page.frameLocator("iframe");
    const state = frame.locator("#state .chip").filter({ hasNotText: "asking" });
    await state.waitFor();
    await page.screenshot({ path: path.join(given.out, "inside-airflow.png") });
    const where = page.frames().map((one) => new URL(one.url()).pathname).pop();
    console.log(JSON.stringify({ state: await state.textContent(), where, refused }));
  } finally {
    await browser.close();
  }
}

main().catch((problem) => { console.error(String(problem)); process.exit(1); });
