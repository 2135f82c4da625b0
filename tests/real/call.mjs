// Chromium, told line by line what to do: each line of standard input is {id, op, …}, each answer {id, value} or {id, error}.
import { chromium } from "playwright-core";
import { createInterface } from "node:readline";

const browsers = [];
const pages = {};

const operations = {
    // One browser for each page, so that one can be killed without the other.
    async open({ page, url, rules, args = [] }) {
        const browser = await chromium.launch({
            executablePath: "/usr/bin/chromium",
            args: [
                "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required",
                "--allow-loopback-in-peer-connection", `--host-resolver-rules=${rules}`,
                "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests,WebRtcHideLocalIpsWithMdns,DialMediaRouteProvider",
                ...args,
            ],
        });
        browsers.push(browser);
        const context = await browser.newContext({ permissions: ["camera", "microphone"], viewport: { width: 640, height: 360 } });
        const opened = (pages[page] = await context.newPage());
        opened.on("console", (message) => process.stderr.write(`${page}: ${message.text()}\n`));
        opened.on("pageerror", (error) => process.stderr.write(`${page}: ${error}\n`));
        await opened.goto(url);
    },
    evaluate: ({ page, code }) => pages[page].evaluate(code),
    evaluateIn: async ({ page, frame, code }) => pages[page].frames().find((found) => found.url().includes(frame))?.evaluate(code),
    reload: ({ page }) => pages[page].reload(),
    screenshot: ({ page, path }) => pages[page].screenshot({ path }).then(() => true),
    // The renderer dies, and says nothing to anybody.
    async crash({ page }) {
        const session = await pages[page].context().newCDPSession(pages[page]);
        session.send("Page.crash").catch(() => {});
    },
    async close({ page }) {
        await pages[page].context().browser().close();
    },
};

for await (const line of createInterface({ input: process.stdin })) {
    const { id, op, ...rest } = JSON.parse(line);
    operations[op](rest).then(
        (value) => console.log(JSON.stringify({ id, value: value ?? null })),
        (error) => console.log(JSON.stringify({ id, error: String(error) })),
    );
}
await Promise.all(browsers.map((browser) => browser.close().catch(() => {})));
process.exit(0);
