"use strict";
// A click on a heading sorts by that column; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const text = (row, column) => {
    const cell = row.cells[column];
    return (cell.dataset.value ?? cell.textContent).trim();
  };
  headings.forEach((heading, column) => {
    const numbers = heading.classList.contains("number");
    heading.querySelector("button").addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      // The highest number first, but names from A to Z.
      const down = now ? now === "ascending" : numbers;
      const order = (a, b) => {
        if (!numbers) return text(a, column).localeCompare(text(b, column), "en", { numeric: true });
        return parseFloat(text(a, column).replace(/,/g, "")) - parseFloat(text(b, column).replace(/,/g, ""));
      };
      const known = (row) => !numbers || !Number.isNaN(parseFloat(text(row, column)));
      const rows = [...body.rows];
      const sorted = rows.filter(known).sort((a, b) => (down ? order(b, a) : order(a, b)));
      body.append(...sorted, ...rows.filter((row) => !known(row)));
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}
// Paper shows everything.
const closed = [];
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) {
    one.open = true;
    closed.push(one);
  }
});
addEventListener("afterprint", () => {
  for (const one of closed.splice(0)) one.open = false;
});
