// The images of the visible jobs. Only visible tiles are in the page.

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
  if (view === "ab") return drawAb();
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
    el("div", { class: "differs" }, item.rating ? el("span", { class: "stars", role: "img", "aria-label": starsLabel(item.rating) },
      "★".repeat(item.rating)) : null, differs || item.id));
  const node = el("div", { class: "tile", "data-id": item.id, "data-status": item.status }, open, caption, mark);
  // In a report that is still loading, the thumbnail may arrive later.
  const pending = !live && item.files.length > 0 && image.tagName !== "IMG" && document.readyState !== "complete";
  return { node, image, mark, item, pending };
}
