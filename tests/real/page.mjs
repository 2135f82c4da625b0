// The page of the admin server: what it asks, whether it fits a small screen, and what its button does.
import { chromium } from "playwright-core";

const url = process.argv[2];
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--no-first-run"] });
const seen = { hosts: [], problems: [] };

async function open(options) {
    const page = await (await browser.newContext(options)).newPage();
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && seen.problems.push(message.text()));
    page.on("pageerror", (error) => seen.problems.push(error.message));
    page.on("request", (request) => seen.hosts.push(new URL(request.url()).host));
    await page.goto(url);
    await page.waitForSelector("#certificates tbody tr");
    return page;
}

const page = await open({ viewport: { width: 360, height: 800 } });
seen.width = await page.evaluate(() => document.documentElement.scrollWidth);
seen.sites = await page.locator("#certificates tbody tr").count();
seen.services = await page.locator("#services tbody tr").count();
await page.waitForSelector("#services .fix");
seen.fixes = await page.locator("#services .fix, #certificates .fix").allTextContents();
// The first stop of the keyboard is the way past the head of the page.
await page.keyboard.press("Tab");
seen.first = await page.evaluate(() => document.activeElement.className);
await page.click("#reload");
await page.waitForFunction(() => document.getElementById("said").textContent !== "");
seen.said = await page.textContent("#said");
const arabic = await open({ locale: "ar", viewport: { width: 1280, height: 800 } });
seen.direction = await arabic.evaluate(() => getComputedStyle(document.body).direction);
seen.hosts = [...new Set(seen.hosts)];
console.log("JSON " + JSON.stringify(seen));
await browser.close();
