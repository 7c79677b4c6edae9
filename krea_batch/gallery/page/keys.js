// The views, and the keys.

function switchView(name) {
  view = name;
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === name);
  for (const id of ["images", "grid", "ab", "charts"]) $(id).hidden = id !== name;
  $("axes").hidden = name !== "grid";
  $("ab-controls").hidden = name !== "ab" || blindTest !== null;
  $("filters").hidden = name === "charts" || (name === "ab" && blindTest !== null);
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
    else if (event.key === "v") newJobsLike(openItem);
    else rateByKey(event.key, openItem);
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "?") showKeys();
  else if (view === "ab" && blindTest && event.key.startsWith("Arrow")) {
    event.preventDefault();
    voteByKey(event.key);
  } else if (event.key === "c") compare();
  else if (event.key === "a") markAll();
  else if (event.key === "e" && marked.size) exportMarked();
  else if (event.key === "v") openNewJobs(marked.size ? markedItems() : [focusedItem()].filter(Boolean));
  else if (event.key === "b") switchView(view === "ab" ? "images" : "ab");
  else if (event.key === "g") switchView(view === "grid" ? "images" : "grid");
  else if (/^(Arrow|Home$|End$)/.test(event.key) && view === "images") moveFocus(event);
  else if (event.key === "m") { const item = focusedItem(); if (item) toggleMark(item.id); }
  else rateByKey(event.key, focusedItem());
});
// The job of the tile or the grid's image that has the focus.
function focusedItem() {
  const id = document.activeElement.closest?.(".tile")?.dataset.id ?? document.activeElement.dataset.open;
  return [...items.values()].find((item) => item.id === id);
}
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
$("show-keys").addEventListener("click", showKeys);
$("mark-all").addEventListener("click", markAll);
$("new")?.addEventListener("click", () => openNewJobs(markedItems()));
$("export")?.addEventListener("click", exportMarked);
$("compare").addEventListener("click", compare);
$("unmark").addEventListener("click", () => { marked.clear(); $("marked").hidden = true; draw(); });
$("save-ids").addEventListener("click", () => save("ids.txt", "text/plain", markedItems().map((item) => item.id + "\n").join("")));
$("save-json").addEventListener("click", () => save("marked.json", "application/json", JSON.stringify(markedItems(), null, 1)));
