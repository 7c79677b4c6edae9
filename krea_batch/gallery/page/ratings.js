// Star ratings, 1 to 5, which the server keeps with the run.

const MAX_RATING = 5;
const starsText = (rating) => "★".repeat(rating) + "☆".repeat(MAX_RATING - rating);
const starsLabel = (rating) => pluralize(rating, "star");

async function rate(ids, rating) {
  const { status, text } = await post("/ratings", { ids, rating });
  if (status !== 204) showMessage(`Cannot save the rating: ${status === 507 ? text : failureText(status)}.`);
}
// The buttons of one job. The button of its rating removes it. A report only shows the rating.
function ratingButtons(item) {
  if (!live) return item.rating ? el("span", { role: "img", "aria-label": starsLabel(item.rating) }, starsText(item.rating)) : null;
  return el("div", { class: "rating", role: "group", "aria-label": "Rating" },
    ...Array.from({ length: MAX_RATING }, (_, index) => index + 1).map((stars) =>
      el("button", { type: "button", "aria-label": starsLabel(stars), "aria-pressed": String(stars === item.rating),
        onclick: () => rate([item.id], stars === item.rating ? null : stars) }, stars <= item.rating ? "★" : "☆")));
}
// Keys: 1 to 5 rate an image, 0 removes its rating.
function rateByKey(key, item) {
  if (live && item && /^[0-5]$/.test(key)) rate([item.id], Number(key) || null);
}
