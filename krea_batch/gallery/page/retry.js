// The retry of failed jobs.

const limitText = () => runStatus.max_charges == null ? ""
  : ` The run was limited to ${runStatus.max_charges.toLocaleString("en")} charges in all (--max-charges), and so is this.`;
function confirmRetry() {
  const ids = retryableItems().map((item) => item.id);
  const pendingCount = [...items.values()].filter((item) => item.status === "pending").length;
  // `retry` resumes the run, so it also submits the jobs that were pending before.
  const pendingText = pendingCount ? `Pending jobs are submitted too: ${pluralize(pendingCount, "job")}. ` : "";
  const costText = body.simulated === "1" ? "The run is simulated, so nothing is charged."
    : `Up to ${pluralize(ids.length + pendingCount, "job")} will be charged.`;
  $("confirm-retry").replaceChildren(el("div", { class: "dialog-body" },
    el("p", {}, `Resubmit ${pluralize(ids.length, "job")}? ${pendingText}${costText}${limitText()}`), el("div", { class: "button-row" },
      el("button", { type: "button", id: "confirm", onclick: () => { $("confirm-retry").close(); retry(ids); } }, "Resubmit"),
      el("button", { type: "button", autofocus: true, onclick: () => $("confirm-retry").close() }, "Cancel"))));
  $("confirm-retry").showModal();
}
async function retry(ids) {
  const { status } = await post("/retry", ids);
  const reason = status === 409 ? "another retry is running" : failureText(status);
  showMessage(status === 202 ? "Resubmitting…" : `Cannot start the retry: ${reason}.`);
}
