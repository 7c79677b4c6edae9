// The state of the page, and helpers that build its elements. This is the first of the page's scripts.
"use strict";

const $ = (id) => document.getElementById(id);
const body = document.body.dataset;
const live = body.live === "1";
const thumbnailsPerBlock = Number(body.thumbnailsPerBlock);
const states = JSON.parse($("states").textContent); // krea_batch.jobs.STATES: the properties of each state
const items = new Map();         // by job number, in the order of the ledger
const marked = new Set();        // job ids
const filterValues = {};         // by name of the filter
let visibleItems = [];           // the items that match the filters, in order
let view = "images";
let axes = [];                   // names of the parameters and metadata fields that differ between jobs
let runStatus = {};              // expected_jobs, and whether a process is running
let thumbnailIndex = new Map();  // in a report: by job number, the position of its thumbnail

const el = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
};
// "1 job" or "2,000 jobs", as krea_batch.cli.ui.formatting.pluralize does.
const pluralize = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const displayText = (value) => (typeof value === "string" ? value : JSON.stringify(value));
