// What the pages can do beyond forms and links: add a found package to the list, copy the share link, draw plots.
"use strict";

document.addEventListener("click", (event) => {
  const offer = event.target.closest("[data-package]");
  const list = document.getElementById("packages");
  if (offer && list) {
    const names = list.value.split(/\s+/).filter(Boolean);
    if (!names.includes(offer.dataset.package)) names.push(offer.dataset.package);
    list.value = names.join(" ");
    return;
  }
  const copier = event.target.closest("[data-copy]");
  if (copier) {
    navigator.clipboard.writeText(document.querySelector(copier.dataset.copy).href).then(() => {
      copier.textContent = "Copied";
    });
  }
});

for (const copier of document.querySelectorAll("[data-copy]")) copier.hidden = !navigator.clipboard;

for (const place of document.querySelectorAll("[data-plot]")) {
  if (!window.uPlot) break;
  const told = JSON.parse(place.dataset.plot);
  const colour = getComputedStyle(place).color;
  const axis = { stroke: colour, grid: { stroke: "#8884", width: 1 } };
  const times = told.labels.map((label) => Date.parse(label.slice(0, 10)) / 1000);
  const series = told.datasets.map((one) => ({ label: one.label, stroke: one.color, width: 2 }));
  const size = () => ({ width: place.clientWidth, height: 220 });
  const plot = new uPlot(
    { ...size(), series: [{}, ...series], axes: [axis, axis] },
    [times, ...told.datasets.map((one) => one.data)],
    place,
  );
  window.addEventListener("resize", () => plot.setSize(size()));
}
