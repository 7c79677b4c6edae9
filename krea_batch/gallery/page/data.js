// The jobs, live from the server of this page or from the data in a report. This is the last of the page's scripts.

function updateItems(changed) {
  for (const item of changed) items.set(item.job_no, item);
  drawFilters();
  updateRetryButton();
  filter();
  if ($("lightbox").open && items.get(openItem.job_no) !== openItem) openLightbox(items.get(openItem.job_no), openFileIndex);
}
if (live) {
  let connected = false, queuedItems = null;
  const subscribe = () => {
    const source = new EventSource("/events");
    source.addEventListener("open", async () => {
      connected = true;
      queuedItems = []; // events wait here, because the response to the request below may be older than they are
      // All items, to include the changes that were missed without a connection. It may break again in the response.
      const all = await fetch("/items").then((response) => response.ok ? response.json() : null).catch(() => null);
      if (!all) return; // the connection is lost again; the next "open" fetches again
      updateItems([...all, ...queuedItems]);
      queuedItems = null;
      document.body.dataset.ready = "1";
    });
    source.addEventListener("run_status", (event) => { runStatus = JSON.parse(event.data); filter(); });
    source.addEventListener("items", (event) => {
      if (queuedItems) queuedItems.push(...JSON.parse(event.data));
      else updateItems(JSON.parse(event.data));
    });
    source.addEventListener("command_output", (event) => showMessage(JSON.parse(event.data).text));
    source.addEventListener("error", () => {
      // The browser reconnects, unless the server refuses the connection.
      if (source.readyState === EventSource.CLOSED) showMessage(`No connection: ${restartedText}.`);
      else if (connected) showMessage("The server does not respond; reconnecting.");
      connected = false;
    });
    source.addEventListener("open", () => showMessage(""));
  };
  subscribe();
  if (body.otherTitle) fetch("/other/items").then((response) => response.ok ? response.json() : []).then((others) => {
    otherItems = others.map((item) => ({ ...item, base: "/other" }));
    draw();
  });
} else {
  const all = JSON.parse($("items").textContent);
  let index = 0;
  for (const item of all) if (item.files.length) thumbnailIndex.set(item.job_no, index++);
  updateItems(all);
  document.body.dataset.ready = "1";
  document.addEventListener("readystatechange", draw);
  if (document.readyState === "loading") new MutationObserver((_, observer) => {
    draw();
    if (document.readyState !== "loading") observer.disconnect();
  }).observe(document.body, { childList: true });
}
