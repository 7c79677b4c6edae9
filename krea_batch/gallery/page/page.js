"use strict";
// Shows the items of the ledger. Everything is loaded from this page's own server.

const $ = (id) => document.getElementById(id);
const body = document.body.dataset;
const live = body.live === "1";
const block = Number(body.block);
const states = JSON.parse($("states").textContent); // what krea_batch.jobs.STATES says of each state
const items = new Map();         // by number in the ledger
const marked = new Set();        // ids
const chosen = {};               // filter name -> value
let shown = [];                  // items that pass the filters, in order
let view = "images";
let axes = [];                   // names of what differs between jobs
let standing = {};               // how many jobs there are to be, and whether a process works on them
let order = new Map();           // in a report: place of an item's thumbnail among all

const el = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
};
const words = (value) => (typeof value === "string" ? value : JSON.stringify(value));

// ---- where images are ----

const blocks = new Map();
const isHere = (item, k = 0) => item.files.length > k && !item.files[k].path.includes("://"); // else: in an object store
function thumbnail(item) {
  if (!isHere(item)) return null;
  if (live) return `/thumbnail/${item.n}`;
  const place = order.get(item.n), at = Math.floor(place / block);
  if (!blocks.has(at)) {
    const script = $(`thumbnails-${at}`);
    // a block is whole once something stands behind it
    if (!script || (document.readyState === "loading" && !script.nextElementSibling)) return null;
    blocks.set(at, script.textContent.split("\n"));
  }
  const data = blocks.get(at)[place % block];
  return data ? `data:image/webp;base64,${data}` : null;
}
const original = (item, k) => (live ? `/image/${item.n}/${k}` : item.files[k].path.split("/").map(encodeURIComponent).join("/"));

// ---- filters ----

function facets() {
  const found = new Map();
  const add = (name, value) => {
    if (!found.has(name)) found.set(name, new Map());
    const values = found.get(name), word = words(value);
    if (values.size <= 60) values.set(word, (values.get(word) || 0) + 1);
  };
  for (const item of items.values()) {
    add("status", item.status);
    for (const [name, value] of Object.entries(item.parameters)) add(name, value);
    for (const [name, value] of Object.entries(item.metadata)) if (!own(item, name)) add(name, value);
  }
  for (const [name, values] of found) {
    if (name !== "status" && (values.size < 2 || values.size > 60)) found.delete(name);
  }
  return found;
}
// Metadata can have any name, those of the job's own fields too, which go first.
const own = (item, name) => ["status", "id", "prompt"].includes(name) || Object.hasOwn(item.parameters, name);
const valueOf = (item, name) =>
  ["status", "id", "prompt"].includes(name) ? item[name] : Object.hasOwn(item.parameters, name) ? words(item.parameters[name])
    : Object.hasOwn(item.metadata, name) ? words(item.metadata[name]) : "";

// Numbers by their size; all else as the jobs have it, since the author of a sweep chose an order.
function ordered(values) {
  const all = [...values];
  return all.every((value) => value !== "" && Number.isFinite(Number(value))) ? all.sort((a, b) => a - b) : all;
}

let facetKey = "";
function drawFilters() {
  const found = facets();
  const key = JSON.stringify([...found].map(([name, values]) => [name, [...values.keys()]]));
  if (key === facetKey) return;
  facetKey = key;
  const focused = document.activeElement.dataset.filter;
  $("chosen").replaceChildren(...[...found].map(([name, values]) => {
    const select = el("select", { "aria-label": name, "data-filter": name, onchange: () => {
      chosen[name] = select.value;
      filter();
    } }, el("option", { value: "" }, `${name}: all`),
    ...ordered(values.keys()).map((value) => el("option", { value, selected: chosen[name] === value }, value)));
    return select;
  }));
  if (focused) document.querySelector(`[data-filter=${CSS.escape(focused)}]`)?.focus();
  if (live) {
    $("chosen").append(el("button", { type: "button", id: "again", onclick: askAgain }, "Retry failed"));
  }
  axes = [...found.keys()].filter((name) => name !== "status");
  const fill = (id, wanted) => {
    const before = $(id).value;
    $(id).replaceChildren(...["prompt", ...axes].map((name) => el("option", { value: name }, name)));
    $(id).value = before || wanted;
  };
  fill("rows", "prompt");
  fill("columns", axes[0] || "prompt");
  drawAgain();
}
const retryable = () => [...items.values()].filter((item) => states[item.status].retried_by_default);
function drawAgain() {
  const button = $("again");
  if (button) button.hidden = !retryable().length;
}

function filter() {
  const wanted = $("text").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const picks = Object.entries(chosen).filter(([, value]) => value);
  shown = [...items.values()].filter((item) => {
    const text = (item.prompt + " " + item.id).toLowerCase();
    return wanted.every((word) => text.includes(word)) && picks.every(([name, value]) => valueOf(item, name) === value);
  });
  const all = items.size, stored = [...items.values()].filter((item) => item.status === "succeeded").length;
  const told = (count) => count.toLocaleString("en");
  const some = shown.length === all ? "" : `${told(shown.length)} shown of `;
  const begun = standing.jobs > all ? ` begun of ${told(standing.jobs)}` : "";
  const going = standing.at_work ? ", going on" : "";
  $("counts").textContent = `${some}${told(all)} ${all === 1 ? "job" : "jobs"}${begun}, ${told(stored)} with an image${going}`;
  $("nothing").textContent = all ? "Nothing matches the filters." : "Nothing to show yet.";
  $("nothing").hidden = shown.length > 0 || view === "charts";
  draw();
}

// ---- images: only those in sight are in the page ----

const TILE = 200, GAP = 12, UNDER = 54;
let layout = { columns: 1, width: TILE };
const tiles = new Map();
function measure() {
  const width = $("images").clientWidth - parseFloat(getComputedStyle($("images")).paddingLeft) * 2;
  const columns = Math.max(2, Math.floor((width + GAP) / (TILE + GAP)));
  layout = { columns, width: (width - GAP * (columns - 1)) / columns };
}
function draw() {
  if (view === "grid") return drawGrid();
  if (view !== "images") return;
  measure();
  const { columns, width } = layout, height = width + UNDER + GAP;
  $("canvas").style.height = `${Math.ceil(shown.length / columns) * height}px`;
  const top = $("images").scrollTop, sight = $("images").clientHeight;
  const first = Math.max(0, Math.floor(top / height) - 2) * columns;
  const last = Math.min(shown.length, (Math.ceil((top + sight) / height) + 2) * columns);
  const wanted = new Set(shown.slice(first, last).map((item) => item.n));
  for (const [n, tile] of tiles) {
    if (!wanted.has(n)) { tile.node.remove(); tiles.delete(n); }
  }
  let next = $("canvas").firstChild; // tiles are in visual order, which is also the Tab order
  for (let at = first; at < last; at++) {
    const item = shown[at];
    const before = tiles.get(item.n);
    let tile = before;
    if (!tile || tile.item !== item || tile.waits) {
      tile = makeTile(item);
      tiles.set(item.n, tile);
      const focused = before?.node.contains(document.activeElement);
      if (before) before.node.replaceWith(tile.node);
      else $("canvas").insertBefore(tile.node, next);
      if (focused) tile.node.querySelector(".open").focus({ preventScroll: true });
    }
    next = tile.node.nextSibling;
    const { style } = tile.node;
    style.width = `${width}px`;
    style.transform = `translate(${(at % columns) * (width + GAP)}px, ${Math.floor(at / columns) * height}px)`;
    tile.face.style.height = `${width}px`;
    tile.mark.setAttribute("aria-pressed", marked.has(item.id));
  }
}
function faceOf(item) {
  const source = thumbnail(item);
  if (source) return el("img", { src: source, alt: item.prompt, decoding: "async", loading: "lazy" });
  const bad = states[item.status].final && item.status !== "succeeded";
  return el("div", { class: bad ? "none bad" : "none" }, item.status !== "succeeded" ? item.status : isHere(item) ? "…" : "kept elsewhere");
}
function makeTile(item) {
  const face = faceOf(item);
  const mark = el("button", { type: "button", class: "mark", "aria-label": `Mark ${item.id}`, "aria-pressed": false,
    onclick: () => toggle(item.id) }, "✓");
  const open = el("button", { type: "button", class: "open", "aria-label": `Open ${item.id}`, onclick: () => show(item) }, face);
  const differs = axes.map((name) => valueOf(item, name)).filter(Boolean).join(" · ");
  const under = el("div", { class: "under", title: item.prompt }, el("div", { class: "prompt" }, item.prompt),
    el("div", { class: "differs" }, differs || item.id));
  const node = el("div", { class: "tile", "data-id": item.id, "data-status": item.status }, open, under, mark);
  return { node, face, mark, item, waits: !live && item.files.length > 0 && face.tagName !== "IMG" && document.readyState !== "complete" };
}

// ---- the sweep as a grid ----

function drawGrid() {
  const rows = $("rows").value, columns = $("columns").value;
  const cells = new Map(), rowNames = new Set(), columnNames = new Set();
  for (const item of shown) {
    const row = valueOf(item, rows), column = valueOf(item, columns), key = JSON.stringify([row, column]);
    rowNames.add(row);
    columnNames.add(column);
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(item);
  }
  const most = 60; // rows in the page at a time; the filters lead to the others
  const several = 4; // images of one cell that are shown
  const names = ordered(columnNames);
  const focused = $("grid").contains(document.activeElement) && document.activeElement.dataset.open;
  $("grid").replaceChildren(el("table", { class: "sweep" },
    el("thead", {}, el("tr", {}, el("td"), ...names.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...ordered(rowNames).slice(0, most).map((row) => el("tr", {}, el("th", { scope: "row" }, row),
      ...names.map((column) => {
        const found = cells.get(JSON.stringify([row, column])) || [];
        if (!found.length) return el("td", { class: "cell" });
        const more = found.length > several ? el("span", { class: "more" }, `and ${found.length - several} more`) : null;
        return el("td", { class: "cell" }, el("div", { class: found.length > 1 ? "several" : "" },
          ...found.slice(0, several).map((item) => el("button", { type: "button", class: "open", "data-open": item.id,
            "aria-label": `Open ${item.id}`, onclick: () => show(item) }, faceOf(item)))), more);
      }))))),
  rowNames.size > most ? el("p", {}, `${rowNames.size - most} more rows: filter to see them.`) : "");
  if (focused) document.querySelector(`[data-open=${CSS.escape(focused)}]`)?.focus({ preventScroll: true });
}

// ---- one image ----

let current = null, currentFile = 0;
function show(item, k = 0) {
  current = item;
  currentFile = k;
  const controls = () => [...$("lightbox").querySelectorAll("button, a")];
  const held = controls().indexOf(document.activeElement);
  const known = { id: item.id, status: item.status, ...item.parameters };
  const facts = { request_id: item.request_id,
    file: item.files[k]?.path, size: item.files[k] ? `${item.files[k].width} × ${item.files[k].height}` : null, submitted: item.submitted_at,
    stored: item.stored_at, submits: item.attempts, polls: item.polls, error: item.error };
  const stage = el("div", { class: "stage" });
  if (item.files.length) {
    const small = thumbnail(item);
    if (small) stage.append(el("img", { src: small, alt: "" }));
    if (!small) stage.append(faceOf(item));
    if (isHere(item, k)) {
      const big = el("img", { src: original(item, k), alt: item.prompt });
      big.addEventListener("error", () => big.remove()); // a report may lie elsewhere than its images
      stage.append(big);
    }
  } else stage.append(faceOf(item));
  const step = (label, by) => el("button", { type: "button", onclick: () => go(by), "aria-label": label }, by < 0 ? "←" : "→");
  $("lightbox").replaceChildren(el("div", { class: "big" }, stage, el("div", { class: "facts", tabindex: 0 },
    el("div", { class: "steps" }, step("Previous image", -1), step("Next image", 1),
      el("button", { type: "button", onclick: () => { toggle(item.id); show(item, k); } }, marked.has(item.id) ? "Unmark" : "Mark"),
      isHere(item, k) ? el("a", { href: original(item, k), target: "_blank", rel: "noopener" }, "Open file") : null,
      el("button", { type: "button", onclick: () => $("lightbox").close(), "aria-label": "Close" }, "✕")),
    ...(item.files.length > 1 ? [el("div", { class: "steps" }, ...item.files.map((_, n) =>
      el("button", { type: "button", "aria-pressed": String(n === k), onclick: () => show(item, n) }, `${n + 1}`)))] : []),
    el("h2", { class: "whole" }, item.prompt),
    el("dl", {}, ...[known, item.metadata, facts].flatMap(Object.entries).filter(([, value]) => value != null && value !== "").flatMap(([name, value]) =>
      [el("dt", {}, name), el("dd", {}, words(value))])))));
  if (!$("lightbox").open) $("lightbox").showModal();
  else controls()[held]?.focus(); // who steps on by a button can press it again
}
function go(by) {
  const at = shown.indexOf(current) + by;
  if (at >= 0 && at < shown.length) show(shown[at]);
}

// ---- marks ----

function toggle(id) {
  if (!marked.delete(id)) marked.add(id);
  $("marked").hidden = !marked.size;
  $("marks").textContent = `${marked.size} marked`;
  draw();
}
const markedItems = () => [...items.values()].filter((item) => marked.has(item.id));
function save(name, type, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function compare() {
  const chosenItems = markedItems();
  if (chosenItems.length < 2) return;
  const names = new Set(chosenItems.flatMap((item) => Object.keys({ ...item.parameters, ...item.metadata })));
  names.add("prompt");
  const differs = (name) => new Set(chosenItems.map((item) => valueOf(item, name))).size > 1;
  $("side-by-side").replaceChildren(
    el("div", { class: "steps ask" }, el("button", { type: "button", onclick: () => $("side-by-side").close() }, "Close")),
    el("div", { class: "pair" }, ...chosenItems.map((item) => el("div", {},
      isHere(item) ? el("img", { src: live ? original(item, 0) : thumbnail(item) || "", alt: item.prompt }) : faceOf(item),
      el("div", { class: "facts" }, el("h2", {}, item.id), el("dl", {}, ...[...names].flatMap((name) => [el("dt", {}, name),
        el("dd", { class: differs(name) ? "differs" : "" }, valueOf(item, name))])))))));
  $("side-by-side").showModal();
}

// ---- what failed, once more ----

function askAgain() {
  const ids = retryable().map((item) => item.id);
  const counted = (count) => count === 1 ? "1 job" : `${count.toLocaleString("en")} jobs`;
  const jobs = counted(ids.length), waiting = [...items.values()].filter((item) => item.status === "pending").length;
  const also = waiting ? `What waits to be submitted goes on as well: ${counted(waiting)}. ` : "";
  const cost = also + (body.simulated === "1" ? "The run is simulated, so nothing is paid." : `Up to ${counted(ids.length + waiting)} will be paid for.`);
  $("asking").replaceChildren(el("div", { class: "ask" }, el("p", {}, `Submit ${jobs} again? ${cost}`), el("div", { class: "steps" },
    el("button", { type: "button", id: "yes", onclick: () => { $("asking").close(); again(ids); } }, "Submit again"),
    el("button", { type: "button", autofocus: true, onclick: () => $("asking").close() }, "Leave it"))));
  $("asking").showModal();
}
async function again(ids) {
  const options = { method: "POST", headers: { "X-Token": body.token }, body: JSON.stringify(ids) };
  const status = await fetch("/retry", options).then((answer) => answer.status, () => 0);
  const why = { 0: "the server is gone", 403: "the server was restarted, so reload this page", 409: "another retry is running" };
  tell(status === 202 ? "Submitting again…" : `That could not be started: ${why[status] ?? `the server answered ${status}`}.`);
}
function tell(text) {
  $("said").textContent = text;
  $("said").hidden = !text;
}

// ---- keys, views, life ----

function turn(to) {
  view = to;
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === to);
  for (const id of ["images", "grid", "charts"]) $(id).hidden = id !== to;
  $("axes").hidden = to !== "grid";
  $("filters").hidden = to === "charts";
  filter();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /INPUT|SELECT|TEXTAREA/.test(event.target.tagName);
  if (event.key === "/" && !typing) { event.preventDefault(); $("text").focus(); return; }
  if (event.key === "Escape" && event.target === $("text")) { $("text").value = ""; filter(); $("text").blur(); return; }
  if (typing) return;
  if ($("lightbox").open) {
    if (event.key === "ArrowRight") go(1);
    else if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "m") { toggle(current.id); show(current, currentFile); }
    return;
  }
  if (event.key === "c") compare();
  else if (event.key === "g") turn(view === "grid" ? "images" : "grid");
  else if (/^(Arrow|Home$|End$)/.test(event.key) && view === "images") move(event);
  else if (event.key === "m") { const tile = document.activeElement.closest?.(".tile"); if (tile) toggle(tile.dataset.id); }
});
let last = null; // the id of the tile that had the focus last; its tile may be out of sight, and so out of the page
$("canvas").addEventListener("focusin", (event) => { last = event.target.closest(".tile").dataset.id; });
function move(event) {
  const at = shown.findIndex((item) => item.id === last);
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: layout.columns, ArrowUp: -layout.columns }[event.key];
  const to = { Home: 0, End: shown.length - 1 }[event.key] ?? (at < 0 ? 0 : at + by);
  if (to < 0 || to >= shown.length) return;
  event.preventDefault();
  const height = layout.width + UNDER + GAP, top = Math.floor(to / layout.columns) * height, box = $("images");
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + height > box.scrollTop + box.clientHeight) box.scrollTop = top + height - box.clientHeight;
  draw();
  tiles.get(shown[to].n)?.node.querySelector(".open").focus({ preventScroll: true });
}
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => turn(button.dataset.view));
$("text").addEventListener("input", filter);
$("rows").addEventListener("change", draw);
$("columns").addEventListener("change", draw);
$("images").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
addEventListener("resize", () => requestAnimationFrame(draw));
$("compare").addEventListener("click", compare);
$("unmark").addEventListener("click", () => { marked.clear(); $("marked").hidden = true; draw(); });
$("save-ids").addEventListener("click", () => save("ids.txt", "text/plain", markedItems().map((item) => item.id + "\n").join("")));
$("save-json").addEventListener("click", () => save("marked.json", "application/json", JSON.stringify(markedItems(), null, 1)));

function take(changed) {
  for (const item of changed) items.set(item.n, item);
  drawFilters();
  drawAgain();
  filter();
}
if (live) {
  let open = false, news = null;
  const listen = () => {
    const source = new EventSource("/events");
    source.addEventListener("open", async () => {
      open = true;
      news = []; // it waits: what is asked for now may be older
      // Also what was missed while there was no connection. The connection may end in the middle of the body.
      const all = await fetch("/items").then((answer) => answer.ok ? answer.json() : null).catch(() => null);
      if (!all) return; // the server is gone again; the next "open" fetches again
      take([...all, ...news]);
      news = null;
      document.body.dataset.ready = "1";
    });
    source.addEventListener("standing", (event) => { standing = JSON.parse(event.data); filter(); });
    source.addEventListener("items", (event) => {
      if (news) news.push(...JSON.parse(event.data));
      else take(JSON.parse(event.data));
    });
    source.addEventListener("said", (event) => tell(JSON.parse(event.data).text));
    source.addEventListener("error", () => { if (open) tell("The server is gone; waiting for it."); open = false; });
    source.addEventListener("open", () => tell(""));
  };
  listen();
} else {
  const all = JSON.parse($("items").textContent);
  let place = 0;
  for (const item of all) if (item.files.length) order.set(item.n, place++);
  take(all);
  document.body.dataset.ready = "1";
  document.addEventListener("readystatechange", draw);
  if (document.readyState === "loading") new MutationObserver((_, observer) => {
    draw();
    if (document.readyState !== "loading") observer.disconnect();
  }).observe(document.body, { childList: true });
}
