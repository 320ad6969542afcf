// Signs in to Airflow, opens a DAG, triggers it from its form, waits until the run is green.
// node trigger.cjs '{"url","user","password","dag","params":{},"moments":{},"out","chromium","timeout_s"}'
// Prints one JSON line {"state", "run", "screens"}; exit 1 when the run is not green.
const path = require("path");
const { given, inChromium, desktop, signIn } = require("./browser.cjs");

const limit = (given.timeout_s || 180) * 1000;

inChromium(async (browser) => {
  const page = await desktop(browser, 30_000);
  const screens = [];
  const shoot = async (name) => {
    const file = path.join(given.out, `${String(screens.length + 1).padStart(2, "0")}-${name}.png`);
    await page.screenshot({ path: file });
    screens.push(file);
  };
  // the page's own session also tells the state of its runs, so no second sign-in is needed
  const runs = async () => {
    const answer = await page.request.get(
      `${given.url}/api/v2/dags/${given.dag}/dagRuns?limit=50&order_by=-run_after`);
    if (!answer.ok()) throw new Error(`runs of ${given.dag}: ${answer.status()}`);
    return (await answer.json()).dag_runs;
  };
  try {
    await signIn(page, () => shoot("sign-in"));
    await page.goto(`${given.url}/dags`);
    await page.getByRole("link", { name: given.dag, exact: true }).first().waitFor();
    await shoot("dags");
    await page.getByRole("link", { name: given.dag, exact: true }).first().click();
    const trigger = page.getByRole("button", { name: /^Trigger/ }).filter({ hasText: "Trigger" }).first();
    await trigger.waitFor();
    await shoot("dag");
    const before = new Set((await runs()).map((run) => run.dag_run_id));
    await trigger.click();
    const dialog = page.getByRole("dialog");
    await dialog.waitFor();
    for (const [name, value] of Object.entries(given.params || {})) {
      const field = dialog.locator(`[name=element_${name}]`);
      if (!(await field.isVisible())) await dialog.getByText("Run Parameters").first().click();
      await field.fill(value);
    }
    for (const [title, moment] of Object.entries(given.moments || {})) {
      const [date, time] = moment.split("T");
      const field = dialog.locator("[data-scope=field][data-part=root]")
        .filter({ has: page.getByText(title, { exact: true }) }).last();
      await field.getByTestId("datetime-input").click();
      await page.locator("[placeholder='YYYY/MM/DD']:visible").fill(date.replaceAll("-", "/"));
      await page.locator("[placeholder='HH:mm']:visible").fill(time);
      await dialog.getByRole("heading").first().click(); // closes the calendar
    }
    await page.waitForTimeout(500); // the dialog fades in
    await shoot("form");
    await dialog.getByRole("button", { name: /^Trigger/ }).last().click();
    await dialog.waitFor({ state: "hidden" });
    const deadline = Date.now() + limit;
    let mine;
    while (!mine || !["success", "failed"].includes(mine.state)) {
      if (Date.now() > deadline) throw new Error(`not ended in time: ${JSON.stringify(mine)}`);
      await page.waitForTimeout(500);
      mine = (await runs()).find(
        (run) => run.run_type === "manual" && !before.has(run.dag_run_id));
    }
    const run = encodeURIComponent(mine.dag_run_id);
    await page.goto(`${given.url}/dags/${given.dag}/runs/${run}`);
    await page.getByText(mine.state, { exact: false }).first().waitFor();
    await page.waitForTimeout(2000); // the grid and the graph draw themselves
    await shoot(`run-${mine.state}`);
    console.log(JSON.stringify({ state: mine.state, run: mine.dag_run_id, conf: mine.conf, screens }));
    process.exitCode = mine.state === "success" ? 0 : 1;
  } catch (problem) {
    await shoot("problem");
    throw problem;
  }
});
