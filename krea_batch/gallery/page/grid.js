// The sweep as a grid.

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
  rowNames.size > maxRows ? el("p", {}, `${pluralize(rowNames.size - maxRows, "more row")}; use the filters to see them.`) : "");
  if (focused) document.querySelector(`[data-open=${CSS.escape(focused)}]`)?.focus({ preventScroll: true });
}
