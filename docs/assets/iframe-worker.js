// Search without a server: a page that is read from disk may start no worker, so its search runs in a hidden frame.
// The name is the theme's: its search asks for it to find out where it runs.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<script>postMessage = (said) => frameElement.said(said)</script><script src="${url}"></script>`;
      frame.said = (said) => this.dispatchEvent(new MessageEvent("message", { data: said }));
      const loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
      this.postMessage = async (asked) => {
        await loaded;
        frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: asked }));
      };
      document.body.append(frame);
    }
  };
  window.Worker = window.IFrameWorker;
}
