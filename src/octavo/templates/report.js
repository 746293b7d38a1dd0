"use strict";
// Where the contents do not stand beside the report, the answer is the first that is seen.
if (!matchMedia("(min-width: 75rem)").matches) document.querySelector("nav details").open = false;

// Cells are switched on and off in all figures at once.
const cells = document.querySelector(".cells");
if (cells) {
  cells.hidden = false;
  cells.addEventListener("change", ({ target }) => {
    for (const mark of document.querySelectorAll("[data-cell]"))
      if (mark.dataset.cell === target.value) mark.style.display = target.checked ? "" : "none";
  });
}

// The number of the nearest mark is shown beside the pointer.
const tip = document.getElementById("tip");
const said = JSON.parse(document.getElementById("said").textContent);
const REACH = 16; // pixels
for (const figure of document.querySelectorAll("figure")) {
  const marks = [...figure.querySelectorAll("[data-number]")];
  figure.addEventListener("pointermove", (event) => {
    const away = (mark) => {
      const box = mark.getBoundingClientRect();
      if (!box.width) return Infinity; // not shown
      const out = (at, from, to) => Math.max(from - at, 0, at - to);
      return Math.hypot(out(event.clientX, box.left, box.right), out(event.clientY, box.top, box.bottom));
    };
    const [distance, mark] = marks.reduce((best, one) => {
      const d = away(one);
      return d < best[0] ? [d, one] : best;
    }, [REACH, null]);
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = `${mark.closest("[data-what]").dataset.what} ${said[mark.dataset.number]}`;
    tip.style.left = Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
  });
  figure.addEventListener("pointerleave", () => { tip.hidden = true; });
}

// A table is sorted by the column whose header is pressed: by number where a column has them, else by text.
const value = (row, column) => row.cells[column].textContent.trim();
const numeric = (text) => {
  const found = /^[^\d−+-]*([−+-]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s?([A-Za-z]+\b)?/.exec(text);
  const unit = {
    k: 1e3, M: 1e6, B: 1e9, T: 1e12, min: 60, h: 3600, cents: 0.01, kWh: 1e3, MWh: 1e6,
  };
  return found ? Number(found[1].replaceAll(",", "").replace("−", "-")) * (unit[found[2]] ?? 1) : NaN;
};
for (const header of document.querySelectorAll("thead th")) {
  const body = header.closest("table").tBodies[0];
  if (body.rows.length < 2) continue;
  const button = document.createElement("button");
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => {
    const column = header.cellIndex;
    const down = header.getAttribute("aria-sort") === "ascending";
    const rows = [...body.rows];
    const numbers = header.classList.contains("r");
    const order = (a, b) => {
      const [x, y] = [a, b].map((row) => numeric(value(row, column)));
      if (!numbers || (isNaN(x) && isNaN(y))) return value(a, column).localeCompare(value(b, column));
      return isNaN(x) ? Infinity : isNaN(y) ? -Infinity : x - y;
    };
    rows.sort((a, b) => (down && isFinite(order(a, b)) ? order(b, a) : order(a, b))); // what is no number comes last
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  });
}
