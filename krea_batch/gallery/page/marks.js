// Marked images: compared side by side, or saved as a list.

function toggleMark(id) {
  if (!marked.delete(id)) marked.add(id);
  drawMarks();
}
// Mark all visible jobs; if all of them are marked, unmark them.
function markAll() {
  const ids = visibleItems.map((item) => item.id), all = ids.every((id) => marked.has(id));
  for (const id of ids) all ? marked.delete(id) : marked.add(id);
  drawMarks();
}
function drawMarks() {
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
