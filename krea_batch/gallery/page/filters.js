// The search and the filters: which jobs are visible.

const MAX_FACET_VALUES = 60; // a field with more values, such as a free text, gets no filter
function facets() {
  const facetValues = new Map();
  const add = (name, value) => {
    if (!facetValues.has(name)) facetValues.set(name, new Map());
    const values = facetValues.get(name), text = displayText(value);
    if (values.size <= MAX_FACET_VALUES) values.set(text, (values.get(text) || 0) + 1);
  };
  for (const item of items.values()) {
    add("status", item.status);
    if (item.rating) add("rating", item.rating);
    for (const [name, value] of Object.entries(item.parameters)) add(name, value);
    for (const [name, value] of Object.entries(item.metadata)) if (!isOwnField(item, name)) add(name, value);
  }
  for (const [name, values] of facetValues) {
    if (!["status", "rating"].includes(name) && (values.size < 2 || values.size > MAX_FACET_VALUES)) facetValues.delete(name);
  }
  return facetValues;
}
// A metadata field can have the name of a field of the job itself, which then takes precedence.
const JOB_FIELDS = ["status", "rating", "id", "prompt"];
const isOwnField = (item, name) => JOB_FIELDS.includes(name) || Object.hasOwn(item.parameters, name);
const valueOf = (item, name) =>
  JOB_FIELDS.includes(name) ? displayText(item[name] ?? "") : Object.hasOwn(item.parameters, name) ? displayText(item.parameters[name])
    : Object.hasOwn(item.metadata, name) ? displayText(item.metadata[name]) : "";

// Sort numbers. Keep other values in the order of the jobs, because the author of a sweep chose that order.
function sortValues(values) {
  const all = [...values];
  return all.every((value) => value !== "" && Number.isFinite(Number(value))) ? all.sort((a, b) => a - b) : all;
}

let lastFacets = "";
function drawFilters() {
  const facetValues = facets();
  const key = JSON.stringify([...facetValues].map(([name, values]) => [name, [...values.keys()]]));
  if (key === lastFacets) return;
  lastFacets = key;
  const focused = document.activeElement.dataset.filter;
  $("filter-selects").replaceChildren(...[...facetValues].map(([name, values]) => {
    const select = el("select", { "aria-label": name, "data-filter": name, onchange: () => {
      filterValues[name] = select.value;
      filter();
    } }, el("option", { value: "" }, `${name}: all`),
    ...sortValues(values.keys()).map((value) => el("option", { value, selected: filterValues[name] === value }, value)));
    return select;
  }));
  if (focused) document.querySelector(`[data-filter=${CSS.escape(focused)}]`)?.focus();
  if (live) {
    $("filter-selects").append(el("button", { type: "button", id: "retry", onclick: confirmRetry }, "Retry failed"));
  }
  axes = [...facetValues.keys()].filter((name) => !["status", "rating"].includes(name));
  const fillSelect = (id, defaultName) => {
    const before = $(id).value;
    $(id).replaceChildren(...["prompt", ...axes].map((name) => el("option", { value: name }, name)));
    $(id).value = before || defaultName;
  };
  fillSelect("rows", "prompt");
  fillSelect("columns", axes[0] || "prompt");
  updateRetryButton();
}
const retryableItems = () => [...items.values()].filter((item) => states[item.status].retried_by_default);
function updateRetryButton() {
  const button = $("retry");
  if (button) button.hidden = !retryableItems().length;
}

function filter() {
  const searchWords = $("text").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const activeFilters = Object.entries(filterValues).filter(([, value]) => value);
  visibleItems = [...items.values()].filter((item) => {
    const text = (item.prompt + " " + item.id).toLowerCase();
    return searchWords.every((word) => text.includes(word))
      && activeFilters.every(([name, value]) => valueOf(item, name) === value);
  });
  const total = items.size, stored = [...items.values()].filter((item) => item.status === "succeeded").length;
  const format = (count) => count.toLocaleString("en");
  const shownText = visibleItems.length === total ? "" : `${format(visibleItems.length)} shown of `;
  const expectedText = runStatus.expected_jobs > total ? ` of ${format(runStatus.expected_jobs)} expected` : "";
  const runningText = runStatus.running ? ", running" : "";
  $("counts").textContent = `${shownText}${pluralize(total, "job")}${expectedText}, ${format(stored)} with an image${runningText}`;
  $("empty").textContent = total ? "No jobs match the filters." : "No jobs yet.";
  $("empty").hidden = visibleItems.length > 0 || view === "charts";
  draw();
}
