// The A/B comparison of two values of a parameter, or of two runs: side by side, or as a blind test.

const RUNS = "two runs"; // the choice of the other run, which `krea-batch view --compare-with` names
const MAX_PAIRS_SHOWN = 200; // of all pairs; filters show the others
let otherItems = []; // the jobs of the other run
let blindTest = null; // { names, trials, votes } while it is shown
let lastPairs = "";

function drawAb() {
  if (blindTest) return;
  const axis = fillAbSelects();
  const names = { a: $("ab-a").value, b: $("ab-b").value };
  const pairs = axis === RUNS ? pairsOfRuns(visibleItems, otherItems) : pairsOfAxis(visibleItems, axis, names.a, names.b);
  const key = JSON.stringify([axis, names, pairs.map(([a, b]) => [a.job_no, b.job_no])]);
  $("ab-blind").disabled = !pairs.length;
  $("ab-blind").onclick = () => startBlindTest(pairs, names);
  if (key === lastPairs) return;
  lastPairs = key;
  const hiddenCount = pairs.length - MAX_PAIRS_SHOWN;
  $("ab").replaceChildren(
    el("p", { role: "status" }, pairs.length ? pluralize(pairs.length, "pair")
      : "No pairs: choose two values that differ. Two images are a pair if nothing else differs in their jobs."),
    ...pairs.slice(0, MAX_PAIRS_SHOWN).map(([a, b]) => el("div", { class: "pair" }, abFigure(a, names.a), abFigure(b, names.b))),
    hiddenCount > 0 ? el("p", {}, `${pluralize(hiddenCount, "more pair")}; use the filters to see them.`) : "");
}
// Returns the chosen axis.
function fillAbSelects() {
  const fill = (select, values, preferred) => {
    const before = select.value;
    if (JSON.stringify([...select.options].map((option) => option.value)) !== JSON.stringify(values)) {
      select.replaceChildren(...values.map((value) => el("option", { value }, value)));
      select.value = values.includes(before) ? before : values[preferred] ?? values[0] ?? "";
    }
  };
  fill($("ab-axis"), [...(otherItems.length ? [RUNS] : []), ...axes, "prompt"], 0);
  const axis = $("ab-axis").value;
  const values = axis === RUNS ? [] : sortValues(new Set([...items.values()].map((item) => valueOf(item, axis))));
  fill($("ab-a"), axis === RUNS ? [body.title] : values, 0);
  fill($("ab-b"), axis === RUNS ? [body.otherTitle] : values, axis === RUNS ? 0 : 1);
  return axis;
}
function abImage(item, alt) {
  const image = el("img", { src: original(item, 0), alt, loading: "lazy" });
  image.addEventListener("error", () => { image.src = thumbnail(item) ?? "data:,"; }, { once: true });
  return image;
}
const abFigure = (item, name) => el("figure", {}, abImage(item, item.prompt),
  el("figcaption", {}, name, el("span", { class: "differs" }, ` ${item.id}`)));

// ---- the blind test: names are not in the page until its end ----

function startBlindTest(pairs, names) {
  blindTest = { names, trials: makeTrials(pairs, Math.random), votes: [] };
  $("ab-controls").hidden = $("filters").hidden = true;
  const voteButton = (side, label, key) =>
    el("button", { type: "button", onclick: () => vote(side) }, label, " ", el("kbd", {}, key));
  $("ab").replaceChildren(
    el("p", { id: "ab-progress", role: "status" }), el("div", { class: "pair", id: "ab-trial" }),
    el("div", { class: "button-row" }, voteButton("left", "Left is better", "←"), voteButton("equal", "Equal", "↓"),
      voteButton("right", "Right is better", "→"), el("button", { type: "button", onclick: showResult }, "Stop and show the result")));
  drawTrial();
  $("ab").querySelector("button").focus();
}
function drawTrial() {
  const { trials, votes } = blindTest, trial = trials[votes.length];
  $("ab-progress").textContent = `Pair ${votes.length + 1} of ${trials.length}: ${trial.left.prompt}`;
  $("ab-trial").replaceChildren(el("figure", {}, abImage(trial.left, "Left")), el("figure", {}, abImage(trial.right, "Right")));
}
function vote(side) {
  if (!blindTest || blindTest.votes.length === blindTest.trials.length) return;
  blindTest.votes.push(meaningOf(blindTest.trials[blindTest.votes.length], side));
  if (blindTest.votes.length === blindTest.trials.length) showResult();
  else drawTrial();
}
function showResult() {
  const { names, trials, votes } = blindTest, counts = countVotes(votes), decided = counts.a + counts.b;
  const percent = (share) => `${Math.round(share * 100)} %`;
  const row = (name, count, total) => {
    const [low, high] = wilsonInterval(count, total);
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, String(count)),
      el("td", {}, total ? percent(count / total) : "–"), el("td", {}, total ? `${percent(low)} to ${percent(high)}` : "–"));
  };
  const [low, high] = wilsonInterval(counts.a, decided);
  const verdict = !decided || (low <= 0.5 && high >= 0.5) ? "No clear preference: 50 % is within the interval."
    : `${low > 0.5 ? names.a : names.b} is preferred.`;
  $("ab").replaceChildren(
    el("table", { id: "ab-result" }, el("caption", {}, `${votes.length} of ${trials.length} pairs`),
      el("thead", {}, el("tr", {}, ...["better", "votes", "share", "95 % interval"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, row(names.a, counts.a, decided), row(names.b, counts.b, decided),
        el("tr", {}, el("th", { scope: "row" }, "equal"), el("td", {}, String(counts.equal)), el("td"), el("td")))),
    el("p", { role: "status" }, verdict),
    el("div", { class: "button-row" },
      el("button", { type: "button", onclick: () => saveResult(names, trials, votes) }, "Save JSON"),
      el("button", { type: "button", onclick: endBlindTest }, "Back to the pairs")),
    ...trials.slice(0, votes.length).map((trial, index) => el("div", { class: "pair" },
      abFigure(trial.left, names[trial.leftIs]), abFigure(trial.right, names[trial.leftIs === "a" ? "b" : "a"]),
      el("p", {}, votes[index] === "equal" ? "equal" : `${names[votes[index]]} was better`))));
  $("ab").querySelector("button").focus();
}
function saveResult(names, trials, votes) {
  const rows = votes.map((better, index) => {
    const { left, right, leftIs } = trials[index], [a, b] = leftIs === "a" ? [left, right] : [right, left];
    return { a: a.id, b: b.id, better };
  });
  save("ab.json", "application/json", JSON.stringify({ names, counts: countVotes(votes), votes: rows }, null, 1));
}
function endBlindTest() {
  blindTest = null;
  lastPairs = "";
  $("ab-controls").hidden = $("filters").hidden = false;
  draw();
  $("ab-axis").focus();
}
function voteByKey(key) {
  const side = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "equal" }[key];
  if (side && $("ab-trial")) vote(side);
}
for (const id of ["ab-axis", "ab-a", "ab-b"]) $(id).addEventListener("change", draw);
