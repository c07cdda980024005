// Uses a page as a reader would, and leaves what it found in an element of its own.
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)];
  const cards = () => all("article.sample").map(card => card.textContent);
  const choose = (select, value) => {
    select.value = value;
    select.dispatchEvent(new Event("change"));
  };
  const set = (name, value) => choose(document.querySelector(`select[name="${name}"]`), value);
  const root = document.documentElement;
  const found = {
    errors,
    panels: all(".panel svg path").length,
    titles: all(".panel h3").map(title => title.textContent),
    wide: root.scrollWidth - root.clientWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    bold: all("#main b").length,
    red: all('.panel svg line[stroke-dasharray="5 4"]').length,
    marks: all(".panel svg path title").map(title => title.textContent),
    first: cards(),
    washes: {},
  };
  set("verdict", "wrong");
  found.wrong = cards().length;
  set("verdict", "truncated");
  found.truncated = cards().length;
  set("verdict", "");
  set("age", "2");
  found.old = cards().length;
  set("age", "");
  set("problems", "short");
  found.held_out = cards().length;
  set("problems", "training");
  set("step", "1");
  found.early = cards().length;
  set("step", "40");
  for (const by of ["none", "ratio", "entropy", "advantage", "logp"]) {
    set("tokens coloured by", by);
    const token = document.querySelector(".token");
    found.washes[by] = token && getComputedStyle(token).backgroundColor;
  }
  choose(document.querySelector("nav select"), "rollouts");
  found.axis = document.querySelector(".panel svg").textContent;
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify(found);
  document.body.append(probe);
});
