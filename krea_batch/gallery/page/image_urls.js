// The URLs of images and thumbnails: of the server, or of the data in a report.

const thumbnailBlocks = new Map();
// An image in an object store has a URL instead of a path, and is not shown.
const isLocal = (item, fileIndex = 0) => item.files.length > fileIndex && !item.files[fileIndex].path.includes("://");
function thumbnail(item) {
  if (!isLocal(item)) return null;
  if (live) return `${item.base ?? ""}/thumbnail/${item.job_no}`;
  const index = thumbnailIndex.get(item.job_no), blockIndex = Math.floor(index / thumbnailsPerBlock);
  if (!thumbnailBlocks.has(blockIndex)) {
    const script = $(`thumbnails-${blockIndex}`);
    // While the page is loading, a block is complete only if an element follows it.
    if (!script || (document.readyState === "loading" && !script.nextElementSibling)) return null;
    thumbnailBlocks.set(blockIndex, script.textContent.split("\n"));
  }
  const data = thumbnailBlocks.get(blockIndex)[index % thumbnailsPerBlock];
  return data ? `data:image/webp;base64,${data}` : null;
}
const original = (item, fileIndex) =>
  live ? `${item.base ?? ""}/image/${item.job_no}/${fileIndex}` : item.files[fileIndex].path.split("/").map(encodeURIComponent).join("/");
