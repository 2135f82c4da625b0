// The page of the admin server. It draws what the server sends as events and asks nothing of anybody else.
"use strict";

const WORDS = {
  en: {
    skip: "Skip to the content", actions: "Actions", reload: "Reload the configuration", runDoctor: "Run doctor",
    state: "State", traffic: "Traffic of the last quarter of an hour", site: "Site", services: "Services",
    sites: "Sites and certificates", filter: "Filter", doctor: "Doctor", errors: "Last errors", lastReload: "Last reload",
    ready: "Ready.", live: "live", lost: "The connection is lost; trying again.", allSites: "All sites",
    requests: "Requests a second", latency: "Time to the response, median and 99 %", bytesOut: "Bytes a second to clients",
    bytesIn: "Bytes a second from clients", tunnels: "WebSockets open", calls: "Connections to calls open",
    connections: "Connections open", since: "since {0}", version: "version {0}, since {1}",
    service: "Service", serves: "Serves", why: "Cause", inFlight: "In flight", idle: "Idle", failures: "Failed dials",
    more: "and {0} more", untried: "not tried yet", up: "up", slow: "slow", down: "down", host: "Name", left: "Ends", next: "Next order", source: "Source", lastError: "Order",
    renew: "Renew", renewNow: "Renew the certificate of {0}", none: "none", noCertificate: "no certificate", expired: "expired",
    days: "{0} days", time: "Time", request: "Request", status: "Status", reason: "Reason", id: "Request id",
    noErrors: "No error since the start.", noServices: "No service.", noSites: "No certificate.", neverReloaded: "The configuration is that of the start.",
    reloaded: "In effect since {0}.", reloadFailed: "Failed {0}; the old configuration stays in effect.",
    running: "Doctor is running; this takes up to two minutes.", layer: "Layer", verdict: "Verdict", subject: "Subject", fact: "Fact", fix: "Fix",
    ok: "ok", warn: "warning", fail: "broken", skipped: "skipped", attempts: "{0} failures", now: "now {0}", median: "median {0}, 99 % {1}",
  },
  ar: {
    skip: "انتقل إلى المحتوى", actions: "إجراءات", reload: "أعد تحميل الإعدادات", runDoctor: "شغّل الفحص",
    state: "الحالة", traffic: "حركة ربع الساعة الأخير", site: "الموقع", services: "الخدمات",
    sites: "المواقع والشهادات", filter: "تصفية", doctor: "الفحص", errors: "آخر الأخطاء", lastReload: "آخر إعادة تحميل",
    ready: "جاهز.", live: "مباشر", lost: "انقطع الاتصال، وتجري إعادة المحاولة.", allSites: "كل المواقع",
    requests: "طلبات في الثانية", latency: "زمن الاستجابة، الوسيط و99 %", bytesOut: "بايت في الثانية إلى العملاء",
    bytesIn: "بايت في الثانية من العملاء", tunnels: "اتصالات WebSocket مفتوحة", calls: "اتصالات مكالمات مفتوحة",
    connections: "اتصالات مفتوحة", since: "منذ {0}", version: "الإصدار {0}، منذ {1}",
    service: "الخدمة", serves: "تخدم", why: "السبب", inFlight: "قيد التنفيذ", idle: "خاملة", failures: "محاولات فاشلة",
    more: "و{0} أخرى", untried: "لم تُجرَّب بعد", up: "تعمل", slow: "بطيئة", down: "متوقفة", host: "الاسم", left: "تنتهي", next: "الطلب التالي", source: "المصدر", lastError: "الطلب",
    renew: "جدّد", renewNow: "جدّد شهادة {0}", none: "لا شيء", noCertificate: "لا شهادة", expired: "منتهية",
    days: "{0} يومًا", time: "الوقت", request: "الطلب", status: "الرمز", reason: "السبب", id: "معرّف الطلب",
    noErrors: "لا أخطاء منذ البدء.", noServices: "لا خدمات.", noSites: "لا شهادات.", neverReloaded: "الإعدادات هي إعدادات البدء.",
    reloaded: "سارية منذ {0}.", reloadFailed: "فشلت {0}، وتبقى الإعدادات القديمة سارية.",
    running: "الفحص جارٍ، وقد يستغرق دقيقتين.", layer: "الطبقة", verdict: "النتيجة", subject: "الموضوع", fact: "الحقيقة", fix: "الإصلاح",
    ok: "سليم", warn: "تحذير", fail: "معطّل", skipped: "تُخطّي", attempts: "{0} إخفاقات", now: "الآن {0}", median: "الوسيط {0}، 99 % {1}",
  },
};

const $ = (id) => document.getElementById(id);
const TOKEN = document.querySelector("meta[name=token]").content;
let language = (navigator.language || "en").startsWith("ar") ? "ar" : "en";
let overview = null;
let chosen = "";
const traffic = new Map();
const unfolded = new Set();
const drawn = new Map();
let interval = 10;
let length = 90;

/** A text with its values, each isolated so that it keeps its own direction. */
function t(key, ...values) {
  return WORDS[language][key].replace(/\{(\d)\}/g, (_, index) => `\u2068${values[index]}\u2069`);
}

/** An element with attributes and children; text is text and never markup. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Words of a machine, which are read from left to right whatever is around them. */
const code = (text) => el("bdi", { dir: "ltr", class: "code" }, text);

const number = (value) => new Intl.NumberFormat(language, { maximumFractionDigits: value < 10 ? 1 : 0 }).format(value);
const millis = (value) => (value === null || value === undefined ? "–" : `${number(value)} ms`);
function bytes(value) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (value < 1024) return `${number(value)} ${unit}`;
    value /= 1024;
  }
  return `${number(value)} GiB`;
}
const moment = (text) => new Intl.DateTimeFormat(language, { dateStyle: "short", timeStyle: "medium" }).format(new Date(text));

/** Replaces the rows of a table. What has the focus keeps it. */
function table(id, columns, rows, empty) {
  const node = $(id);
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  node.replaceChildren();
  node.setAttribute("role", "table");
  if (rows.length === 0) return void node.append(el("caption", {}, empty));
  const head = columns.map((key) => el("th", { scope: "col", role: "columnheader" }, key && t(key)));
  node.append(el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head)));
  const body = el("tbody", { role: "rowgroup" });
  for (const { cells, cls } of rows) {
    const tds = cells.map((cell, index) => {
      const label = columns[index] ? t(columns[index]) : null;
      const children = Array.isArray(cell) ? cell : [cell ?? ""];
      return el("td", { role: "cell", "data-label": label }, ...children);
    });
    body.append(el("tr", { role: "row", class: cls ?? null }, ...tds));
  }
  node.append(body);
  if (focused) node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function drawState() {
  const { status } = overview;
  $("about").textContent = t("version", status.version, moment(status.started));
  const ready = status.unready.length === 0;
  const clock = status.clock ? [el("p", { class: "warn" }, el("bdi", {}, status.clock))] : [];
  const list = el("ul", { class: "fail" }, ...status.unready.map((reason) => el("li", {}, el("bdi", {}, reason))));
  $("ready").replaceChildren(ready ? el("p", { class: "ok" }, t("ready")) : list, ...clock);
  const said = status.last_reload;
  const parts = [el("p", { class: said ? (said.succeeded ? "ok" : "fail") : null },
    said ? t(said.succeeded ? "reloaded" : "reloadFailed", moment(said.at)) : t("neverReloaded"))];
  if (said?.message) parts.push(el("pre", { dir: "ltr" }, said.message));
  $("last-reload").replaceChildren(...parts);
}

function drawServices() {
  const order = { down: 0, slow: 1, untried: 2, up: 3 };
  const rows = [...overview.status.upstreams].sort((a, b) => order[a.state] - order[b.state]).map((service) => ({
    cells: [
      [el("span", { class: service.state }, t(service.state)), " ", el("span", { class: "faint" }, service.since ? t("since", moment(service.since)) : "")],
      code(service.server),
      sites(service),
      [service.why ? el("bdi", { dir: "ltr" }, service.why) : "", fix(service)],
      number(service.in_flight), number(service.idle), number(service.dial_failures),
    ],
  }));
  table("services", ["state", "service", "serves", "why", "inFlight", "idle", "failures"], rows, t("noServices"));
}

/** A few names, and how many more there are; all of them where somebody looks. */
function sites(service) {
  const names = (all) => all.flatMap((site, index) => [index ? ", " : "", code(site)]);
  if (service.sites.length <= 4) return names(service.sites);
  const more = el("summary", { "data-key": `sites ${service.server}` }, ...names(service.sites.slice(0, 3)), " ", t("more", number(service.sites.length - 3)));
  const all = el("details", { open: unfolded.has(service.server) ? "" : null }, more, ...names(service.sites.slice(3)));
  all.addEventListener("toggle", () => unfolded[all.open ? "add" : "delete"](service.server));
  return all;
}

function drawCertificates() {
  const words = $("filter").value.trim().toLowerCase();
  const all = overview.status.certificates;
  $("filter-label").hidden = all.length < 8;
  const now = Date.now();
  const urgency = (certificate) => certificate.failures > 0 ? 0 : certificate.not_after ? Date.parse(certificate.not_after) : 1;
  const shown = all.filter((certificate) => certificate.host.includes(words)).sort((a, b) => urgency(a) - urgency(b));
  const rows = shown.map((certificate) => ({
    cells: [
      code(certificate.host),
      ending(certificate, now),
      certificate.next ? moment(certificate.next) : "",
      certificate.source,
      [...order(certificate), fix(certificate)],
      certificate.source === "acme" ? renewButton(certificate.host) : "",
    ],
  }));
  table("certificates", ["host", "left", "next", "source", "lastError", ""], rows, t("noSites"));
}

/** What the order of a certificate does, or why the last one failed. */
function order(certificate) {
  if (certificate.progress) return [el("bdi", { dir: "ltr" }, certificate.progress)];
  if (!certificate.last_error) return [];
  return [el("span", { class: "fail" }, t("attempts", number(certificate.failures))), " ", el("bdi", { dir: "ltr" }, certificate.last_error)];
}

/** How to fix what a service or a certificate fails with, on a line of its own. */
function fix({ fix: words }) {
  return words ? el("div", { class: "fix faint" }, t("fix"), ": ", el("bdi", { dir: "ltr" }, words)) : "";
}

function ending(certificate, now) {
  if (!certificate.not_after) return el("span", { class: "fail" }, t("noCertificate"));
  const days = (Date.parse(certificate.not_after) - now) / 86400e3;
  if (days <= 0) return el("span", { class: "fail" }, t("expired"));
  const words = t("days", number(Math.floor(days)));
  // A third of a lifetime is left when it is time to renew; less is late, and a tenth is urgent.
  const due = certificate.next ? (Date.parse(certificate.not_after) - Date.parse(certificate.next)) / 86400e3 : 0;
  const life = due > 0 ? Math.max(3 * due, days) : Math.max(90, days);
  const bar = el("meter", { min: 0, max: life, low: life / 10, high: life / 4, optimum: life, value: days, "aria-hidden": "true" });
  return [bar, " ", el("span", { title: moment(certificate.not_after) }, words)];
}

function renewButton(host) {
  const button = el("button", { type: "button", "data-key": `renew ${host}`, "aria-label": t("renewNow", host) }, t("renew"));
  button.addEventListener("click", () => act(`renew/${encodeURIComponent(host)}`, button));
  return button;
}

function drawErrors() {
  const rows = overview.errors.map((error) => ({
    cells: [moment(error.at), code(`${error.method} ${error.site}${error.uri}`), String(error.status), el("bdi", { dir: "ltr" }, error.reason), code(error.request_id)],
  }));
  table("errors", ["time", "request", "status", "reason", "id"], rows, t("noErrors"));
}

function drawDoctor() {
  const { running, findings, error } = overview.doctor;
  $("run-doctor").disabled = running;
  $("doctor-state").textContent = running ? t("running") : error ?? "";
  const order = { fail: 0, warn: 1, skip: 2, ok: 3 };
  const rows = [...(findings?.findings ?? [])].sort((a, b) => order[a.verdict] - order[b.verdict]).map((finding) => ({
    cls: finding.verdict === "skip" ? "skip-row" : null,
    cells: [
      finding.verdict === "skip" ? t("skipped") : el("span", { class: finding.verdict }, t(finding.verdict)),
      finding.layer, code(finding.subject),
      el("bdi", {}, finding.fact), el("bdi", {}, finding.fix ?? ""),
    ],
  }));
  table("doctor", ["verdict", "layer", "subject", "fact", "fix"], rows, "");
}

/** A chart of one or two lines; its text says the same. */
function chart(title, said, ...lines) {
  const top = Math.max(1e-9, ...lines.flat().map((value) => value ?? 0));
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${length - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  lines.forEach((line, index) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    let pen = "M";
    const points = line.map((value, at) => {
      if (value === null) return ((pen = "M"), "");
      const point = `${pen}${length - line.length + at} ${(97 - (value / top) * 94).toFixed(1)}`;
      pen = "L";
      return point;
    });
    path.setAttribute("d", points.join(""));
    if (index) path.setAttribute("class", "second");
    svg.append(path);
  });
  return el("div", { class: "card" }, title, el("b", {}, said), svg);
}

function drawTraffic() {
  const sites = [...new Set([...traffic.keys(), ...overview.open.map((open) => open.site), ...overview.status.certificates.map((c) => c.host)])];
  const options = ["", ...sites.filter(Boolean).sort()];
  const select = $("site");
  if (select.dataset.of !== language + options.join()) {
    select.replaceChildren(...options.map((site) => el("option", { value: site }, site || t("allSites"))));
    select.dataset.of = language + options.join();
    select.value = chosen;
  }
  const samples = traffic.get(chosen) ?? [];
  const line = (read) => samples.map(read);
  const last = samples.at(-1) ?? { rate: 0, p50: null, p99: null, bytes_in: 0, bytes_out: 0 };
  const open = overview.open.filter((open) => !chosen || open.site === chosen);
  const sum = (read) => open.reduce((all, one) => all + read(one), 0);
  const count = (key, value) => el("div", { class: "card" }, t(key), el("b", {}, number(value)));
  $("charts").replaceChildren(
    chart(t("requests"), t("now", number(last.rate)), line((s) => s.rate)),
    chart(t("latency"), t("median", millis(last.p50), millis(last.p99)), line((s) => s.p50), line((s) => s.p99)),
    chart(t("bytesOut"), t("now", bytes(last.bytes_out / interval)), line((s) => s.bytes_out)),
    chart(t("bytesIn"), t("now", bytes(last.bytes_in / interval)), line((s) => s.bytes_in)),
    count("connections", overview.status.connections),
    count("tunnels", sum((one) => one.tunnels)),
    count("calls", sum((one) => one.calls)),
  );
}

function draw() {
  document.documentElement.lang = language;
  document.documentElement.dir = language === "ar" ? "rtl" : "ltr";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
  $("language").textContent = language === "ar" ? "English" : "العربية";
  $("language").lang = language === "ar" ? "en" : "ar";
  if (!overview) return;
  const { status, errors, doctor } = overview;
  for (const [part, ...shown] of [
    [drawState, status.version, status.started, status.unready, status.clock, status.last_reload],
    [drawServices, status.upstreams],
    [drawCertificates, status.certificates],
    [drawErrors, errors],
    [drawDoctor, doctor],
    [drawTraffic, overview],
  ]) {
    // What is the same stays, so that nothing moves under a reader or loses a selection.
    const now = language + JSON.stringify(shown);
    if (drawn.get(part) !== now) part();
    drawn.set(part, now);
  }
}

/** Asks the edge to do something; what it answers is shown and read aloud. */
async function act(path, button) {
  button.disabled = true;
  try {
    const response = await fetch(path, { method: "POST", headers: { "x-vestibule-token": TOKEN } });
    $("said").textContent = await response.text();
  } catch (error) {
    $("said").textContent = String(error);
  }
  button.disabled = false;
}

function listen() {
  const events = new EventSource("events");
  const live = (key, cls) => {
    if ($("live").dataset.key === language + key) return;
    $("live").dataset.key = language + key;
    $("live").textContent = t(key);
    $("live").className = cls;
  };
  events.addEventListener("overview", (event) => {
    // The same again changes nothing, so that nothing moves under a reader.
    live("live", "ok");
    if (event.data === listen.last) return;
    listen.last = event.data;
    overview = JSON.parse(event.data);
    draw();
  });
  events.addEventListener("traffic", (event) => {
    const news = JSON.parse(event.data);
    ({ interval, length } = news);
    for (const { site, samples } of news.sites) {
      traffic.set(site, [...(traffic.get(site) ?? []), ...samples].slice(-length));
    }
    if (overview) drawTraffic();
  });
  events.addEventListener("open", () => traffic.clear());
  events.addEventListener("error", () => live("lost", "fail"));
}

$("reload").addEventListener("click", () => act("reload", $("reload")));
$("run-doctor").addEventListener("click", () => act("doctor", $("run-doctor")));
$("language").addEventListener("click", () => ((language = language === "ar" ? "en" : "ar"), draw()));
$("filter").addEventListener("input", () => overview && drawCertificates());
$("site").addEventListener("change", () => ((chosen = $("site").value), overview && drawTraffic()));
draw();
listen();
