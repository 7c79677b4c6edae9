// New jobs from images: other seeds, or other parameters. The server plans them, and submits only a plan that was shown.

const choices = JSON.parse($("choices").textContent); // krea_batch.gallery.rendering: the values that are allowed

function openNewJobs(sources) {
  if (!live || !sources.length) return;
  const choice = (name, values) => el("select", { name }, el("option", { value: "" }, "as they are"),
    ...values.map((value) => el("option", { value }, value)));
  const seeds = el("input", { name: "seeds", type: "number", min: 0, max: choices.max_seeds, value: 4 });
  const ratio = choice("aspect_ratio", choices.aspect_ratio), creativity = choice("creativity", choices.creativity);
  const prompt = el("textarea", { name: "prompt", rows: 3 }, sources.length === 1 ? sources[0].prompt : "");
  const error = el("p", { role: "alert", class: "error" });
  const changes = () => ({
    seeds: Number(seeds.value), aspect_ratio: ratio.value || null, creativity: creativity.value || null,
    prompt: prompt.value && prompt.value !== sources[0].prompt ? prompt.value : null,
  });
  const plan = async () => {
    const { status, text } = await post("/plan", { ids: sources.map((item) => item.id), changes: changes() });
    if (status === 200) confirmPlan(JSON.parse(text));
    else error.textContent = status === 422 ? text : status === 400 ? "A value is not allowed." : failureText(status);
  };
  const field = (label, control) => el("label", { class: "field" }, label, control);
  $("new-jobs").replaceChildren(el("div", { class: "dialog-body" },
    el("h2", {}, sources.length === 1 ? `New images like ${sources[0].id}` : `New images like ${sources.length} marked ones`),
    field("New seeds for each (0: keep the seed)", seeds), field("Creativity", creativity), field("Aspect ratio", ratio),
    field(sources.length === 1 ? "Prompt" : "Prompt (empty: as they are)", prompt), error,
    el("div", { class: "button-row" }, el("button", { type: "button", onclick: plan }, "Show the price"),
      el("button", { type: "button", onclick: () => $("new-jobs").close() }, "Cancel"))));
  $("new-jobs").showModal();
}
function confirmPlan({ plan, jobs, pending, cost }) {
  const charges = jobs + pending;
  const pendingText = pending ? ` Pending jobs of the run are submitted too: ${pluralize(pending, "job")}.` : "";
  const costText = body.simulated === "1" ? "The run is simulated, so nothing is charged."
    : `Up to ${pluralize(charges, "charge")}${cost ? `: ${cost}` : ""}.`;
  $("new-jobs").replaceChildren(el("div", { class: "dialog-body" },
    el("p", { id: "new-jobs-price" }, `${pluralize(jobs, "job")} to submit.${pendingText} ${costText}${limitText()}`),
    el("div", { class: "button-row" },
      el("button", { type: "button", id: "confirm-new-jobs", onclick: () => { $("new-jobs").close(); submitPlan(plan); } }, "Submit"),
      el("button", { type: "button", id: "cancel-new-jobs", onclick: () => $("new-jobs").close() }, "Cancel"))));
  $("cancel-new-jobs").focus(); // Enter must not spend anything
}
async function submitPlan(plan) {
  const { status } = await post("/submit", { plan });
  const reasons = { 409: "other jobs are being submitted", 410: "the jobs were submitted already, or others were planned since" };
  showMessage(status === 202 ? "Submitting…" : `Cannot submit the jobs: ${reasons[status] ?? failureText(status)}.`);
}
