// Rules of the A/B comparison, without elements: which images are a pair, and what votes mean.

// Two images are a pair if their jobs differ in nothing but `axis`. Several with the same request are paired in order.
function pairsOfAxis(all, axis, a, b) {
  return matchPairs(all.filter((item) => valueOf(item, axis) === a), all.filter((item) => valueOf(item, axis) === b),
    (item) => requestKey(item, axis));
}
// The jobs of two runs are a pair if they have the same id.
const pairsOfRuns = (all, others) => matchPairs(all, others, (item) => item.id);

function matchPairs(left, right, keyOf) {
  const waiting = new Map();
  for (const item of right.filter((each) => isLocal(each))) {
    const key = keyOf(item);
    waiting.set(key, [...(waiting.get(key) ?? []), item]);
  }
  return left.filter((item) => isLocal(item)).flatMap((item) => {
    const match = waiting.get(keyOf(item))?.shift();
    return match ? [[item, match]] : [];
  });
}
function requestKey(item, axis) {
  const fields = { prompt: item.prompt, ...item.metadata, ...item.parameters };
  delete fields.variation_of; // krea_batch.gallery.new_jobs: names the other image of the pair
  delete fields[axis];
  return JSON.stringify(Object.entries(fields).sort(([one], [other]) => one < other ? -1 : 1));
}

// Trials in random order, each with A on a random side. `random` returns numbers from 0 to 1, as Math.random does.
function makeTrials(pairs, random) {
  const trials = pairs.map(([a, b]) => random() < 0.5 ? { left: a, right: b, leftIs: "a" } : { left: b, right: a, leftIs: "b" });
  for (let last = trials.length - 1; last > 0; last--) { // Fisher and Yates
    const chosen = Math.floor(random() * (last + 1));
    [trials[last], trials[chosen]] = [trials[chosen], trials[last]];
  }
  return trials;
}
// What a vote for a side means: "a", "b" or "equal".
const meaningOf = (trial, side) => side === "equal" ? "equal" : (side === "left") === (trial.leftIs === "a") ? "a" : "b";

function countVotes(votes) {
  const counts = { a: 0, b: 0, equal: 0 };
  for (const vote of votes) counts[vote] += 1;
  return counts;
}
// The 95 % interval of a share, by Wilson's score: Newcombe 1998, "Two-sided confidence intervals for the single
// proportion", method 3. It stays within 0 and 1, also for few votes.
function wilsonInterval(count, total) {
  if (!total) return [0, 1];
  const z = 1.959964, share = count / total, scale = 1 + z * z / total;
  const centre = (share + z * z / (2 * total)) / scale;
  const half = z * Math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale;
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}
