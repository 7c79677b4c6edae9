// One image with all details of its job.

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
      live ? el("button", { type: "button", onclick: () => newJobsLike(item) }, "More like this") : null,
      isLocal(item, fileIndex) ? el("a", { href: original(item, fileIndex), target: "_blank", rel: "noopener" }, "Open file") : null,
      el("button", { type: "button", onclick: () => $("lightbox").close(), "aria-label": "Close" }, "✕")),
    ...(item.files.length > 1 ? [el("div", { class: "button-row" }, ...item.files.map((_, index) =>
      el("button", { type: "button", "aria-pressed": String(index === fileIndex), onclick: () => openLightbox(item, index) },
        `${index + 1}`)))] : []),
    ratingButtons(item),
    el("h2", { class: "full-prompt" }, item.prompt),
    el("dl", {}, ...[request, item.metadata, details].flatMap(Object.entries).filter(([, value]) => value != null && value !== "").flatMap(([name, value]) =>
      [el("dt", {}, name), el("dd", {}, displayText(value))])))));
  if (!$("lightbox").open) $("lightbox").showModal();
  else controls()[focusedControl]?.focus(); // so that a button can be pressed repeatedly
}
function newJobsLike(item) {
  $("lightbox").close();
  openNewJobs([item]);
}
function openNeighbour(delta) {
  const index = visibleItems.indexOf(openItem) + delta;
  if (index >= 0 && index < visibleItems.length) openLightbox(visibleItems[index]);
}
