// Requests to the server of this page that change something, and messages about them.

const restartedText = "the server was restarted; open the URL that krea-batch view printed";
async function post(path, data) {
  const options = { method: "POST", headers: { "X-Token": body.token }, body: JSON.stringify(data) };
  const failed = { status: 0, text: "" };
  return fetch(path, options).then(async (response) => ({ status: response.status, text: await response.text() }), () => failed);
}
function failureText(status) {
  const reasons = { 0: "the server does not respond", 403: restartedText, 400: "the page is out of date; reload it" };
  return reasons[status] ?? `the server returned ${status}`;
}
function showMessage(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}
