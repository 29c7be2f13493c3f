"use strict";
// Sorts, searches and pages tables, which are complete without this script. It keeps no state and sends no requests.

const collator = new Intl.Collator("en", { numeric: true });

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
}

// The column of body cells under a header cell; headers may span rows and columns.
function columnOf(header) {
  const taken = [];
  for (const [y, row] of [...header.closest("thead").rows].entries()) {
    let x = 0;
    for (const cell of row.cells) {
      while (taken[y]?.[x]) x += 1;
      if (cell === header) return x;
      for (let down = 0; down < cell.rowSpan; down += 1)
        for (let across = 0; across < cell.colSpan; across += 1) (taken[y + down] ??= [])[x + across] = true;
      x += cell.colSpan;
    }
  }
  return -1;
}

function makeSortable(table, changed) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.querySelectorAll("th[data-sort]")];
  for (const header of headers) {
    const column = columnOf(header);
    const button = element("button", { type: "button", className: "sort" }, ...header.childNodes);
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keyed = rows.map((row, index) => [valueOf(row, column), index, row]);
      const numbers = keyed.every(([value]) => value !== "" && !Number.isNaN(Number(value)));
      const compare = numbers ? (a, b) => a - b : collator.compare;
      keyed.sort((a, b) => sign * compare(a[0], b[0]) || a[1] - b[1]);
      body.append(...keyed.map(([, , row]) => row));
      changed();
    });
  }
}

// A row matches a word that begins one of its words; a word that ends in a digit must be a whole word: 1 is not 17.
function finds(typed, words) {
  return typed.every((word) => words.some((one) => (/\d$/.test(word) ? one === word : one.startsWith(word))));
}

function makeSearchable(place) {
  const table = document.getElementById(place.dataset.table);
  const size = Number(place.dataset.rows);
  const words = new Map([...table.tBodies[0].rows].map((row) => [row, row.dataset.words.split(" ")]));
  const search = element("input", { type: "search", autocomplete: "off", spellcheck: false });
  const message = element("output");
  const steps = ["« first", "‹ previous", "next ›", "last »"].map((text) =>
    element("button", { type: "button", textContent: text }),
  );
  search.setAttribute("aria-describedby", "search-help");
  let first = 0;
  let found = 0;

  function show() {
    const typed = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = [...table.tBodies[0].rows].filter((row) => finds(typed, words.get(row)));
    found = matching.length;
    first = Math.max(0, Math.min(first, Math.floor((found - 1) / size) * size));
    const shown = new Set(matching.slice(first, first + size));
    for (const row of words.keys()) row.hidden = !shown.has(row);
    const last = Math.min(first + size, found);
    message.value = found ? `${first + 1} to ${last} of ${found}${typed.length ? " found" : ""}` : "nothing found";
    steps[0].disabled = steps[1].disabled = first === 0;
    steps[2].disabled = steps[3].disabled = last >= found;
  }

  function go(to) {
    first = to;
    show();
  }

  search.addEventListener("input", () => go(0));
  steps[0].addEventListener("click", () => go(0));
  steps[1].addEventListener("click", () => go(first - size));
  steps[2].addEventListener("click", () => go(first + size));
  steps[3].addEventListener("click", () => go(found));
  place.prepend(
    element("div", { className: "tools" }, element("label", {}, "Search ", search), message),
    element("p", { className: "note", id: "search-help", textContent: place.dataset.help }),
  );
  place.append(element("div", { className: "tools steps" }, ...steps));
  place.querySelector(".tall").classList.remove("tall"); // a page of rows needs no scrolling inside the page
  makeSortable(table, () => go(0));
  show();
}

for (const place of document.querySelectorAll("[data-table]")) makeSearchable(place);
for (const table of document.querySelectorAll("table[data-sortable]")) makeSortable(table, () => {});
