"use strict";
// Shows the jobs of a run: live, from the server of this page, or from the data in a report.

const $ = (id) => document.getElementById(id);
const body = document.body.dataset;
const live = body.live === "1";
const thumbnailsPerBlock = Number(body.thumbnailsPerBlock);
const states = JSON.parse($("states").textContent); // krea_batch.jobs.STATES: the properties of each state
const items = new Map();         // by job number, in the order of the ledger
const marked = new Set();        // job ids
const filterValues = {};         // by name of the filter
let visibleItems = [];           // the items that match the filters, in order
let view = "images";
let axes = [];                   // names of the parameters and metadata fields that differ between jobs
let runStatus = {};              // expected_jobs, and whether a process is running
let thumbnailIndex = new Map();  // in a report: by job number, the position of its thumbnail

const el = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
};
const displayText = (value) => (typeof value === "string" ? value : JSON.stringify(value));

// ---- image and thumbnail URLs ----

const thumbnailBlocks = new Map();
// An image in an object store has a URL instead of a path, and is not shown.
const isLocal = (item, fileIndex = 0) => item.files.length > fileIndex && !item.files[fileIndex].path.includes("://");
function thumbnail(item) {
  if (!isLocal(item)) return null;
  if (live) return `/thumbnail/${item.job_no}`;
  const index = thumbnailIndex.get(item.job_no), blockIndex = Math.floor(index / thumbnailsPerBlock);
  if (!thumbnailBlocks.has(blockIndex)) {
    const script = $(`thumbnails-${blockIndex}`);
    // While the page is loading, a block is complete only if an element follows it.
    if (!script || (document.readyState === "loading" && !script.nextElementSibling)) return null;
    thumbnailBlocks.set(blockIndex, script.textContent.split("\n"));
  }
  const data = thumbnailBlocks.get(blockIndex)[index % thumbnailsPerBlock];
  return data ? `data:image/webp;base64,${data}` : null;
}
const original = (item, fileIndex) =>
  live ? `/image/${item.job_no}/${fileIndex}` : item.files[fileIndex].path.split("/").map(encodeURIComponent).join("/");

// ---- filters ----

const MAX_FACET_VALUES = 60; // a field with more values, such as a free text, gets no filter
function facets() {
  const facetValues = new Map();
  const add = (name, value) => {
    if (!facetValues.has(name)) facetValues.set(name, new Map());
    const values = facetValues.get(name), text = displayText(value);
    if (values.size <= MAX_FACET_VALUES) values.set(text, (values.get(text) || 0) + 1);
  };
  for (const item of items.values()) {
    add("status", item.status);
    for (const [name, value] of Object.entries(item.parameters)) add(name, value);
    for (const [name, value] of Object.entries(item.metadata)) if (!isOwnField(item, name)) add(name, value);
  }
  for (const [name, values] of facetValues) {
    if (name !== "status" && (values.size < 2 || values.size > MAX_FACET_VALUES)) facetValues.delete(name);
  }
  return facetValues;
}
// A metadata field can have the name of a field of the job itself, which then takes precedence.
const isOwnField = (item, name) => ["status", "id", "prompt"].includes(name) || Object.hasOwn(item.parameters, name);
const valueOf = (item, name) =>
  ["status", "id", "prompt"].includes(name) ? item[name] : Object.hasOwn(item.parameters, name) ? displayText(item.parameters[name])
    : Object.hasOwn(item.metadata, name) ? displayText(item.metadata[name]) : "";

// Sort numbers. Keep other values in the order of the jobs, because the author of a sweep chose that order.
function sortValues(values) {
  const all = [...values];
  return all.every((value) => value !== "" && Number.isFinite(Number(value))) ? all.sort((a, b) => a - b) : all;
}

let lastFacets = "";
function drawFilters() {
  const facetValues = facets();
  const key = JSON.stringify([...facetValues].map(([name, values]) => [name, [...values.keys()]]));
  if (key === lastFacets) return;
  lastFacets = key;
  const focused = document.activeElement.dataset.filter;
  $("filter-selects").replaceChildren(...[...facetValues].map(([name, values]) => {
    const select = el("select", { "aria-label": name, "data-filter": name, onchange: () => {
      filterValues[name] = select.value;
      filter();
    } }, el("option", { value: "" }, `${name}: all`),
    ...sortValues(values.keys()).map((value) => el("option", { value, selected: filterValues[name] === value }, value)));
    return select;
  }));
  if (focused) document.querySelector(`[data-filter=${CSS.escape(focused)}]`)?.focus();
  if (live) {
    $("filter-selects").append(el("button", { type: "button", id: "retry", onclick: confirmRetry }, "Retry failed"));
  }
  axes = [...facetValues.keys()].filter((name) => name !== "status");
  const fillSelect = (id, defaultName) => {
    const before = $(id).value;
    $(id).replaceChildren(...["prompt", ...axes].map((name) => el("option", { value: name }, name)));
    $(id).value = before || defaultName;
  };
  fillSelect("rows", "prompt");
  fillSelect("columns", axes[0] || "prompt");
  updateRetryButton();
}
const retryableItems = () => [...items.values()].filter((item) => states[item.status].retried_by_default);
function updateRetryButton() {
  const button = $("retry");
  if (button) button.hidden = !retryableItems().length;
}

function filter() {
  const searchWords = $("text").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const activeFilters = Object.entries(filterValues).filter(([, value]) => value);
  visibleItems = [...items.values()].filter((item) => {
    const text = (item.prompt + " " + item.id).toLowerCase();
    return searchWords.every((word) => text.includes(word))
      && activeFilters.every(([name, value]) => valueOf(item, name) === value);
  });
  const total = items.size, stored = [...items.values()].filter((item) => item.status === "succeeded").length;
  const format = (count) => count.toLocaleString("en");
  const shownText = visibleItems.length === total ? "" : `${format(visibleItems.length)} shown of `;
  const expectedText = runStatus.expected_jobs > total ? ` of ${format(runStatus.expected_jobs)} expected` : "";
  const runningText = runStatus.running ? ", running" : "";
  const totalText = `${format(total)} ${total === 1 ? "job" : "jobs"}`;
  $("counts").textContent = `${shownText}${totalText}${expectedText}, ${format(stored)} with an image${runningText}`;
  $("empty").textContent = total ? "No jobs match the filters." : "No jobs yet.";
  $("empty").hidden = visibleItems.length > 0 || view === "charts";
  draw();
}

// ---- images: only visible tiles are in the page ----

const TILE_PX = 200, GAP_PX = 12, CAPTION_PX = 54;
let layout = { columns: 1, width: TILE_PX };
const tiles = new Map();
function measure() {
  const width = $("images").clientWidth - parseFloat(getComputedStyle($("images")).paddingLeft) * 2;
  const columns = Math.max(2, Math.floor((width + GAP_PX) / (TILE_PX + GAP_PX)));
  layout = { columns, width: (width - GAP_PX * (columns - 1)) / columns };
}
function draw() {
  if (view === "grid") return drawGrid();
  if (view !== "images") return;
  measure();
  const { columns, width } = layout, height = width + CAPTION_PX + GAP_PX;
  $("canvas").style.height = `${Math.ceil(visibleItems.length / columns) * height}px`;
  const top = $("images").scrollTop, viewportHeight = $("images").clientHeight;
  const first = Math.max(0, Math.floor(top / height) - 2) * columns; // two rows more above and below
  const last = Math.min(visibleItems.length, (Math.ceil((top + viewportHeight) / height) + 2) * columns);
  const visibleJobNos = new Set(visibleItems.slice(first, last).map((item) => item.job_no));
  for (const [jobNo, tile] of tiles) {
    if (!visibleJobNos.has(jobNo)) { tile.node.remove(); tiles.delete(jobNo); }
  }
  let next = $("canvas").firstChild; // tiles are in visual order, which is also the Tab order
  for (let index = first; index < last; index++) {
    const item = visibleItems[index];
    const before = tiles.get(item.job_no);
    let tile = before;
    if (!tile || tile.item !== item || tile.pending) {
      tile = makeTile(item);
      tiles.set(item.job_no, tile);
      const focused = before?.node.contains(document.activeElement);
      if (before) before.node.replaceWith(tile.node);
      else $("canvas").insertBefore(tile.node, next);
      if (focused) tile.node.querySelector(".open").focus({ preventScroll: true });
    }
    next = tile.node.nextSibling;
    const { style } = tile.node;
    style.width = `${width}px`;
    style.transform = `translate(${(index % columns) * (width + GAP_PX)}px, ${Math.floor(index / columns) * height}px)`;
    tile.image.style.height = `${width}px`;
    tile.mark.setAttribute("aria-pressed", marked.has(item.id));
  }
}
function tileImage(item) {
  const source = thumbnail(item);
  if (source) return el("img", { src: source, alt: item.prompt, decoding: "async", loading: "lazy" });
  const unsuccessful = states[item.status].final && item.status !== "succeeded";
  const text = item.status !== "succeeded" ? item.status : isLocal(item) ? "…" : "in an object store";
  return el("div", { class: unsuccessful ? "placeholder unsuccessful" : "placeholder" }, text);
}
function makeTile(item) {
  const image = tileImage(item);
  const mark = el("button", { type: "button", class: "mark", "aria-label": `Mark ${item.id}`, "aria-pressed": false,
    onclick: () => toggleMark(item.id) }, "✓");
  const open = el("button", { type: "button", class: "open", "aria-label": `Open ${item.id}`, onclick: () => openLightbox(item) }, image);
  const differs = axes.map((name) => valueOf(item, name)).filter(Boolean).join(" · ");
  const caption = el("div", { class: "caption", title: item.prompt }, el("div", { class: "prompt" }, item.prompt),
    el("div", { class: "differs" }, differs || item.id));
  const node = el("div", { class: "tile", "data-id": item.id, "data-status": item.status }, open, caption, mark);
  // In a report that is still loading, the thumbnail may arrive later.
  const pending = !live && item.files.length > 0 && image.tagName !== "IMG" && document.readyState !== "complete";
  return { node, image, mark, item, pending };
}

// ---- the sweep as a grid ----

function drawGrid() {
  const rows = $("rows").value, columns = $("columns").value;
  const cells = new Map(), rowNames = new Set(), columnNames = new Set();
  for (const item of visibleItems) {
    const row = valueOf(item, rows), column = valueOf(item, columns), key = JSON.stringify([row, column]);
    rowNames.add(row);
    columnNames.add(column);
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(item);
  }
  const maxRows = 60; // of all rows; filters show the others
  const maxPerCell = 4;
  const names = sortValues(columnNames);
  const focused = $("grid").contains(document.activeElement) && document.activeElement.dataset.open;
  $("grid").replaceChildren(el("table", { class: "sweep" },
    el("thead", {}, el("tr", {}, el("td"), ...names.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...sortValues(rowNames).slice(0, maxRows).map((row) => el("tr", {}, el("th", { scope: "row" }, row),
      ...names.map((column) => {
        const cellItems = cells.get(JSON.stringify([row, column])) || [];
        if (!cellItems.length) return el("td", { class: "cell" });
        const hiddenCount = cellItems.length - maxPerCell;
        const more = hiddenCount > 0 ? el("span", { class: "more" }, `and ${hiddenCount} more`) : null;
        return el("td", { class: "cell" }, el("div", { class: cellItems.length > 1 ? "multiple" : "" },
          ...cellItems.slice(0, maxPerCell).map((item) => el("button", { type: "button", class: "open", "data-open": item.id,
            "aria-label": `Open ${item.id}`, onclick: () => openLightbox(item) }, tileImage(item)))), more);
      }))))),
  rowNames.size > maxRows ? el("p", {}, `${rowNames.size - maxRows} more rows; use the filters to see them.`) : "");
  if (focused) document.querySelector(`[data-open=${CSS.escape(focused)}]`)?.focus({ preventScroll: true });
}

// ---- one image ----

let openItem = null, openFileIndex = 0;
function openLightbox(item, fileIndex = 0) {
  openItem = item;
  openFileIndex = fileIndex;
  const controls = () => [...$("lightbox").querySelectorAll("button, a")];
  const focusedControl = controls().indexOf(document.activeElement);
  const file = item.files[fileIndex];
  const request = { id: item.id, status: item.status, ...item.parameters };
  const details = { request_id: item.request_id,
    file: file?.path, size: file ? `${file.width} × ${file.height}` : null, submitted: item.submitted_at,
    stored: item.stored_at, submits: item.attempts, polls: item.polls, error: item.error };
  const imageBox = el("div", { class: "lightbox-image" });
  if (item.files.length) {
    const preview = thumbnail(item);
    if (preview) imageBox.append(el("img", { src: preview, alt: "" }));
    if (!preview) imageBox.append(tileImage(item));
    if (isLocal(item, fileIndex)) {
      const full = el("img", { src: original(item, fileIndex), alt: item.prompt });
      full.addEventListener("error", () => full.remove()); // a report may have been moved away from its images
      imageBox.append(full);
    }
  } else imageBox.append(tileImage(item));
  const stepButton = (label, delta) =>
    el("button", { type: "button", onclick: () => openNeighbour(delta), "aria-label": label }, delta < 0 ? "←" : "→");
  $("lightbox").replaceChildren(el("div", { class: "lightbox-body" }, imageBox, el("div", { class: "details", tabindex: 0 },
    el("div", { class: "button-row" }, stepButton("Previous image", -1), stepButton("Next image", 1),
      el("button", { type: "button", onclick: () => { toggleMark(item.id); openLightbox(item, fileIndex); } },
        marked.has(item.id) ? "Unmark" : "Mark"),
      isLocal(item, fileIndex) ? el("a", { href: original(item, fileIndex), target: "_blank", rel: "noopener" }, "Open file") : null,
      el("button", { type: "button", onclick: () => $("lightbox").close(), "aria-label": "Close" }, "✕")),
    ...(item.files.length > 1 ? [el("div", { class: "button-row" }, ...item.files.map((_, index) =>
      el("button", { type: "button", "aria-pressed": String(index === fileIndex), onclick: () => openLightbox(item, index) },
        `${index + 1}`)))] : []),
    el("h2", { class: "full-prompt" }, item.prompt),
    el("dl", {}, ...[request, item.metadata, details].flatMap(Object.entries).filter(([, value]) => value != null && value !== "").flatMap(([name, value]) =>
      [el("dt", {}, name), el("dd", {}, displayText(value))])))));
  if (!$("lightbox").open) $("lightbox").showModal();
  else controls()[focusedControl]?.focus(); // so that a button can be pressed repeatedly
}
function openNeighbour(delta) {
  const index = visibleItems.indexOf(openItem) + delta;
  if (index >= 0 && index < visibleItems.length) openLightbox(visibleItems[index]);
}

// ---- marks ----

function toggleMark(id) {
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
  const compared = markedItems();
  if (compared.length < 2) return;
  const names = new Set(compared.flatMap((item) => Object.keys({ ...item.parameters, ...item.metadata })));
  names.add("prompt");
  const differs = (name) => new Set(compared.map((item) => valueOf(item, name))).size > 1;
  $("side-by-side").replaceChildren(
    el("div", { class: "button-row dialog-body" }, el("button", { type: "button", onclick: () => $("side-by-side").close() }, "Close")),
    el("div", { class: "comparison" }, ...compared.map((item) => el("div", {},
      isLocal(item) ? el("img", { src: live ? original(item, 0) : thumbnail(item) || "", alt: item.prompt }) : tileImage(item),
      el("div", { class: "details" }, el("h2", {}, item.id), el("dl", {}, ...[...names].flatMap((name) => [el("dt", {}, name),
        el("dd", { class: differs(name) ? "differs" : "" }, valueOf(item, name))])))))));
  $("side-by-side").showModal();
}

// ---- retry of failed jobs ----

function confirmRetry() {
  const ids = retryableItems().map((item) => item.id);
  const pluralize = (count) => count === 1 ? "1 job" : `${count.toLocaleString("en")} jobs`;
  const pendingCount = [...items.values()].filter((item) => item.status === "pending").length;
  // `retry` resumes the run, so it also submits the jobs that were pending before.
  const pendingText = pendingCount ? `Pending jobs are submitted too: ${pluralize(pendingCount)}. ` : "";
  const costText = body.simulated === "1" ? "The run is simulated, so nothing is charged."
    : `Up to ${pluralize(ids.length + pendingCount)} will be charged.`;
  const limitText = runStatus.max_charges == null ? ""
    : ` The run was limited to ${runStatus.max_charges.toLocaleString("en")} charges in all (--max-charges), and so is the retry.`;
  $("confirm-retry").replaceChildren(el("div", { class: "dialog-body" },
    el("p", {}, `Resubmit ${pluralize(ids.length)}? ${pendingText}${costText}${limitText}`), el("div", { class: "button-row" },
      el("button", { type: "button", id: "confirm", onclick: () => { $("confirm-retry").close(); retry(ids); } }, "Resubmit"),
      el("button", { type: "button", autofocus: true, onclick: () => $("confirm-retry").close() }, "Cancel"))));
  $("confirm-retry").showModal();
}
const restartedText = "the server was restarted; open the URL that krea-batch view printed";
async function retry(ids) {
  const options = { method: "POST", headers: { "X-Token": body.token }, body: JSON.stringify(ids) };
  const status = await fetch("/retry", options).then((response) => response.status, () => 0);
  const reasons = { 0: "the server does not respond", 403: restartedText, 400: "the page is out of date; reload it", 409: "another retry is running" };
  showMessage(status === 202 ? "Resubmitting…" : `Cannot start the retry: ${reasons[status] ?? `the server returned ${status}`}.`);
}
function showMessage(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

// ---- views and keys ----

function switchView(name) {
  view = name;
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === name);
  for (const id of ["images", "grid", "charts"]) $(id).hidden = id !== name;
  $("axes").hidden = name !== "grid";
  $("filters").hidden = name === "charts";
  filter();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /INPUT|SELECT|TEXTAREA/.test(event.target.tagName);
  if (event.key === "/" && !typing) { event.preventDefault(); $("text").focus(); return; }
  if (event.key === "Escape" && event.target === $("text")) { $("text").value = ""; filter(); $("text").blur(); return; }
  if (typing) return;
  if ($("lightbox").open) {
    if (event.key === "ArrowRight") openNeighbour(1);
    else if (event.key === "ArrowLeft") openNeighbour(-1);
    else if (event.key === "m") { toggleMark(openItem.id); openLightbox(openItem, openFileIndex); }
    return;
  }
  if (event.key === "c") compare();
  else if (event.key === "g") switchView(view === "grid" ? "images" : "grid");
  else if (/^(Arrow|Home$|End$)/.test(event.key) && view === "images") moveFocus(event);
  else if (event.key === "m") { const tile = document.activeElement.closest?.(".tile"); if (tile) toggleMark(tile.dataset.id); }
});
let lastFocusedId = null; // of a job; its tile may be scrolled out of view, and is then not in the page
$("canvas").addEventListener("focusin", (event) => { lastFocusedId = event.target.closest(".tile").dataset.id; });
function moveFocus(event) {
  const from = visibleItems.findIndex((item) => item.id === lastFocusedId);
  const delta = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: layout.columns, ArrowUp: -layout.columns }[event.key];
  const to = { Home: 0, End: visibleItems.length - 1 }[event.key] ?? (from < 0 ? 0 : from + delta);
  if (to < 0 || to >= visibleItems.length) return;
  event.preventDefault();
  const height = layout.width + CAPTION_PX + GAP_PX, top = Math.floor(to / layout.columns) * height, box = $("images");
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + height > box.scrollTop + box.clientHeight) box.scrollTop = top + height - box.clientHeight;
  draw();
  tiles.get(visibleItems[to].job_no)?.node.querySelector(".open").focus({ preventScroll: true });
}
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => switchView(button.dataset.view));
$("text").addEventListener("input", filter);
$("rows").addEventListener("change", draw);
$("columns").addEventListener("change", draw);
$("images").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
addEventListener("resize", () => requestAnimationFrame(draw));
$("compare").addEventListener("click", compare);
$("unmark").addEventListener("click", () => { marked.clear(); $("marked").hidden = true; draw(); });
$("save-ids").addEventListener("click", () => save("ids.txt", "text/plain", markedItems().map((item) => item.id + "\n").join("")));
$("save-json").addEventListener("click", () => save("marked.json", "application/json", JSON.stringify(markedItems(), null, 1)));

// ---- data ----

function updateItems(changed) {
  for (const item of changed) items.set(item.job_no, item);
  drawFilters();
  updateRetryButton();
  filter();
}
if (live) {
  let connected = false, queuedItems = null;
  const subscribe = () => {
    const source = new EventSource("/events");
    source.addEventListener("open", async () => {
      connected = true;
      queuedItems = []; // events wait here, because the response to the request below may be older than they are
      // All items, to include the changes that were missed without a connection. It may break again in the response.
      const all = await fetch("/items").then((response) => response.ok ? response.json() : null).catch(() => null);
      if (!all) return; // the connection is lost again; the next "open" fetches again
      updateItems([...all, ...queuedItems]);
      queuedItems = null;
      document.body.dataset.ready = "1";
    });
    source.addEventListener("run_status", (event) => { runStatus = JSON.parse(event.data); filter(); });
    source.addEventListener("items", (event) => {
      if (queuedItems) queuedItems.push(...JSON.parse(event.data));
      else updateItems(JSON.parse(event.data));
    });
    source.addEventListener("retry_output", (event) => showMessage(JSON.parse(event.data).text));
    source.addEventListener("error", () => {
      // The browser reconnects, unless the server refuses the connection.
      if (source.readyState === EventSource.CLOSED) showMessage(`No connection: ${restartedText}.`);
      else if (connected) showMessage("The server does not respond; reconnecting.");
      connected = false;
    });
    source.addEventListener("open", () => showMessage(""));
  };
  subscribe();
} else {
  const all = JSON.parse($("items").textContent);
  let index = 0;
  for (const item of all) if (item.files.length) thumbnailIndex.set(item.job_no, index++);
  updateItems(all);
  document.body.dataset.ready = "1";
  document.addEventListener("readystatechange", draw);
  if (document.readyState === "loading") new MutationObserver((_, observer) => {
    draw();
    if (document.readyState !== "loading") observer.disconnect();
  }).observe(document.body, { childList: true });
}
