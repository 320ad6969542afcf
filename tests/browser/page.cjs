// Opens the scoring server's page as a desktop, then as a phone, and says what it saw.
// node page.cjs '{"url","out","chromium","next"}': prints "open" when the desktop shows a version,
// then waits for version `next` without a reload, then prints one JSON line.
// With "token" in place of "next": unlocks the page with a wrong token, then with that one.
const path = require("path");
const { given, inChromium } = require("./browser.cjs");

inChromium(async (browser) => {
  const problems = [];
  const open = async (width, height, colorScheme, more = {}, first = "#version") => {
    const context = await browser.newContext({
      viewport: { width, height }, colorScheme, deviceScaleFactor: 2, locale: "en-GB",
      timezoneId: "UTC", ...more });
    const page = await context.newPage();
    page.setDefaultTimeout(20_000);
    page.on("pageerror", (problem) => problems.push(String(problem)));
    page.on("console", (said) => { if (said.type() === "error") problems.push(said.text()); });
    await page.goto(given.url);
    await page.locator(first).waitFor();
    await page.waitForTimeout(300);
    return page;
  };
  const shoot = (page, name) =>
    page.screenshot({ path: path.join(given.out, `page-${name}.png`), fullPage: true });
  const overflow = (page) => page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  const unlock = async () => {
    const page = await open(1280, 900, "light", {}, "#locked");
    await shoot(page, "locked");
    const hidden = await page.locator("#clock").isHidden();
    const enter = async (token) => {
      await page.getByLabel("Admin token").fill(token);
      await page.getByRole("button", { name: "Look inside" }).click();
    };
    await enter("not-the-token-of-it");
    await page.locator("#refused", { hasText: "not the admin token" }).waitFor();
    await enter(given.token);
    await page.locator("#version").waitFor();
    console.log(JSON.stringify({ hidden, locked: await page.locator("#locked").isVisible() }));
  };
  if (given.token) return await unlock();
  const desk = await open(1280, 900, "light");
  const clock = () => desk.locator("#clock").innerText();
  const first = await desk.locator("#version").innerText();
  const ticks = [await clock()];
  for (let i = 0; i < 3; i++) { await desk.waitForTimeout(400); ticks.push(await clock()); }
  await desk.evaluate(() => { window.notReloaded = true; });
  console.log("open");
  await desk.locator("#version", { hasText: given.next }).waitFor();
  const kept = await desk.evaluate(() => window.notReloaded === true);
  const after = await clock();
  const said = await desk.locator("#said").innerText();
  const shown = await desk.locator("main").innerText();
  await desk.waitForTimeout(300);
  await shoot(desk, "desktop");
  await shoot(await open(1280, 900, "dark"), "desktop-dark");
  const phone = await open(360, 740, "light", { isMobile: true, hasTouch: true });
  const wide = [await overflow(desk), await overflow(phone)];
  await shoot(phone, "phone");
  const dark = await open(320, 640, "dark", { isMobile: true, hasTouch: true });
  wide.push(await overflow(dark));
  await shoot(dark, "phone-dark");
  console.log(JSON.stringify({ first, ticks, kept, after, said, shown, wide, problems }));
});
