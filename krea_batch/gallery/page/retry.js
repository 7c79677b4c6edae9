// The retry of failed jobs.

function confirmRetry() {
  const ids = retryableItems().map((item) => item.id);
  const pluralize = (count) => count === 1 ? "1 job" : `${count.toLocaleString("en")} jobs`;
  const pendingCount = [...items.values()].filter((item) => item.status === "pending").length;
  // `retry` resumes the run, so it also submits the jobs that were pending before.
  const pendingText = pendingCount ? `Pending jobs are submitted too: ${pluralize(pendingCount)}. ` : "";
  const costText = body.simulated === "1" ? "The run is simulated, so nothing is charged."
    : `Up to ${pluralize(ids.length + pendingCount)} will be charged.`;
  const limitText = runStatus.max_charges == null ? ""
    : ` The run was limited to ${runStatus.max_charges.toLocaleString("en")} charges in all (--max-charges), and so is the retry.`;
  $("confirm-retry").replaceChildren(el("div", { class: "dialog-body" },
    el("p", {}, `Resubmit ${pluralize(ids.length)}? ${pendingText}${costText}${limitText}`), el("div", { class: "button-row" },
      el("button", { type: "button", id: "confirm", onclick: () => { $("confirm-retry").close(); retry(ids); } }, "Resubmit"),
      el("button", { type: "button", autofocus: true, onclick: () => $("confirm-retry").close() }, "Cancel"))));
  $("confirm-retry").showModal();
}
const restartedText = "the server was restarted; open the URL that krea-batch view printed";
async function retry(ids) {
  const options = { method: "POST", headers: { "X-Token": body.token }, body: JSON.stringify(ids) };
  const status = await fetch("/retry", options).then((response) => response.status, () => 0);
  const reasons = { 0: "the server does not respond", 403: restartedText, 400: "the page is out of date; reload it", 409: "another retry is running" };
  showMessage(status === 202 ? "Resubmitting…" : `Cannot start the retry: ${reasons[status] ?? `the server returned ${status}`}.`);
}
function showMessage(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}
