// A page of one name asks another; what it is allowed to read.
import { chromium } from "playwright-core";

const port = process.argv[2];
const browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    args: [
        "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--host-resolver-rules=MAP *.example.org 127.0.0.1, MAP example.org 127.0.0.1",
        "--ignore-certificate-errors", "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
    ],
});
const page = await (await browser.newContext({ ignoreHTTPSErrors: true })).newPage();
await page.goto(`https://app.example.org:${port}/`);
const seen = await page.evaluate(async (port) => {
    const client = await (await fetch(`https://example.org:${port}/.well-known/matrix/client`)).json();
    const support = (await fetch(`https://example.org:${port}/.well-known/matrix/support`)).status;
    const login = (await (await fetch(`https://matrix.example.org:${port}/_synapse/admin/x`)).json()).errcode;
    const socket = await new Promise((resolve) => {
        const ws = new WebSocket(`wss://matrixrtc.example.org:${port}/rtc/v1?access_token=x`);
        ws.onopen = () => ws.send("hello");
        ws.onmessage = (event) => resolve(event.data);
        ws.onerror = () => resolve("error");
    });
    return { client, support, login, socket };
}, port);
console.log("JSON " + JSON.stringify(seen));
await browser.close();
