"use strict";
const { queries, videos } = JSON.parse(document.getElementById("data").textContent);
const [box, order, count, list, more] = ["filter", "order", "count", "list", "more"].map((id) => document.getElementById(id));
const STEP = 20;
let shown = STEP;

function element(kind, text, name, ...children) {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  made.append(...children);
  return made;
}

function matching() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = queries.filter(([text]) => words.every((word) => text.toLowerCase().includes(word)));
  if (order.value === "worst") found.sort((a, b) => b[1] - a[1]);
  if (order.value === "best") found.sort((a, b) => a[1] - b[1]);
  return found;
}

function item([text, rank, own, found]) {
  const hits = found.map(([video, score], i) =>
    element("li", `${i + 1}. `, "", element("span", video === own ? "its own video" : videos[video], video === own ? "own" : "other"),
      element("span", ` ${score.toFixed(3)}`, "pale")));
  const summary = element("summary", `“${text}” `, "", element("span", `rank ${rank.toLocaleString("en")}`, "rank"));
  return element("li", "", "", element("details", "", "example", summary, element("ol", "", "", ...hits)));
}

function show() {
  const found = matching();
  const first = found.filter((query) => query[1] === 1).length;
  const share = found.length ? `; own video first for ${((100 * first) / found.length).toFixed(1)} %` : "";
  count.textContent = `${found.length.toLocaleString("en")} of ${queries.length.toLocaleString("en")} queries${share}`;
  list.replaceChildren(...found.slice(0, shown).map(item));
  more.hidden = found.length <= shown;
}

for (const control of [box, order]) {
  control.addEventListener("input", () => { shown = STEP; show(); });
}
more.addEventListener("click", () => { shown += STEP; show(); });
show();
