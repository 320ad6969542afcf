// Signs in to Airflow and opens the line's page from its navigation.
// node inside.cjs '{"url","user","password","out","chromium"}': prints one JSON line: what the
// page's state says in Airflow's frame, where that frame is, and the errors of the console.
const path = require("path");
const { given, inChromium, desktop, signIn } = require("./browser.cjs");

inChromium(async (browser) => {
  const page = await desktop(browser, 60_000);
  const refused = [];
  page.on("console", (said) => { if (/Refused|Content Security/.test(said.text())) refused.push(said.text()); });
  await signIn(page);
  await page.getByRole("link", { name: "Headrace" }).first().click();
  const frame = page.frameLocator("iframe");
  const state = frame.locator("#state .chip").filter({ hasNotText: "asking" });
  await state.waitFor();
  await page.screenshot({ path: path.join(given.out, "inside-airflow.png") });
  const where = page.frames().map((one) => new URL(one.url()).pathname).pop();
  console.log(JSON.stringify({ state: await state.textContent(), where, refused }));
});
