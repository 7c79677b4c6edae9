// The list of keys, which `?` shows.

const KEYS = [
  ["/", "search"], ["arrow keys, Home, End", "move between images"], ["Enter", "open the image"], ["Escape", "close, or clear the search"],
  ["m", "mark the image"], ["a", "mark all shown images, or unmark them"], ["c", "compare the marked images"],
  ...(live ? [["1 to 5", "rate the image; 0 removes the rating"], ["v", "new images like the marked ones, or like this one"],
    ["e", "export the marked images"]] : []),
  ["g", "the grid"], ["b", "the A/B comparison"], ["←, →, ↓", "in a blind test: left is better, right is better, equal"], ["?", "this list"],
];
function showKeys() {
  $("keys").replaceChildren(el("div", { class: "dialog-body details" }, el("h2", {}, "Keys"),
    el("dl", {}, ...KEYS.flatMap(([key, text]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, text)])),
    el("button", { type: "button", onclick: () => $("keys").close() }, "Close")));
  $("keys").showModal();
}
