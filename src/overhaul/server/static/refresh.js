// Ask for the status fragment every few seconds and replace only the sections that changed, so that nothing
// flickers, no scroll position is lost and a reader's selection or focus elsewhere stays.
"use strict";

(() => {
  const main = document.querySelector("main[data-fragment]");
  const state = document.getElementById("refresh-state");
  if (!main) return;
  const seconds = Number(main.dataset.every);
  const parser = new DOMParser();

  const replaceChanged = (fresh) => {
    const wanted = [...fresh.body.children];
    for (const section of wanted) {
      const present = section.id && document.getElementById(section.id);
      if (!present) main.append(section);
      else if (present.outerHTML !== section.outerHTML && !present.contains(document.activeElement)) {
        present.replaceWith(section);
      }
    }
  };

  const refresh = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(main.dataset.fragment, { headers: { accept: "text/html" } });
        if (!answer.ok) throw new Error(String(answer.status));
        replaceChanged(parser.parseFromString(await answer.text(), "text/html"));
        if (state.textContent) state.textContent = "";
      } catch {
        const words = "The server does not answer; this page shows what was last known.";
        if (state.textContent !== words) state.textContent = words;
      }
    }
    setTimeout(refresh, seconds * 1000);
  };

  setTimeout(refresh, seconds * 1000);
})();
