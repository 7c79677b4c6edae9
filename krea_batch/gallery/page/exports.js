// Exports of the marked images, which the server makes with `krea-batch export`.

async function exportMarked() {
  const marks = markedItems().filter((item) => item.status === "succeeded");
  if (!live || !marks.length) return showMessage("No marked job has an image to export.");
  const format = $("export-format").value;
  showMessage("Exporting…");
  const { status, text } = await post("/export", { ids: marks.map((item) => item.id), format });
  if (status !== 200) return showMessage(`Cannot export: ${status === 409 ? "another export is running" : status === 422 ? text : failureText(status)}`);
  el("a", { href: text, download: `images.${format}` }).click();
  showMessage(`${pluralize(marks.length, "job")} exported.`);
}
