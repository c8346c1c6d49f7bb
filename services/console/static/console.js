// Keyboard shortcuts, confirmations and focus. Every page works without this file.
"use strict";

(() => {
  const isInput = (target) => target.closest("input, textarea, select, [contenteditable]") !== null;
  const rows = () => [...document.querySelectorAll("table.list tbody tr, ul.groups > li, details > summary")];
  let prefixedAt = 0; // time of the key g, the prefix of the shortcuts to pages

  const move = (step) => {
    const all = rows();
    if (all.length === 0) return;
    const at = all.findIndex((row) => row.contains(document.activeElement));
    const next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step))];
    const aim = next.matches("summary") ? next : next.querySelector("a, button, input") || next;
    if (aim === next && !next.matches("summary")) next.tabIndex = -1;
    aim.focus();
    aim.scrollIntoView({ block: "nearest" });
  };

  // On a phone, the navigation is wider than the screen.
  document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && isInput(event.target)) {
      event.target.blur();
      return;
    }
    if (isInput(event.target)) return;
    const dialog = document.getElementById("shortcuts");
    if (dialog !== null && dialog.open) return;
    if (Date.now() - prefixedAt < 1500) {
      prefixedAt = 0;
      const link = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
      if (link !== null) {
        event.preventDefault();
        link.click();
      }
      return;
    }
    const search = document.querySelector("[data-search]");
    if (event.key === "g") prefixedAt = Date.now();
    else if (event.key === "?" && dialog !== null) dialog.showModal();
    else if (event.key === "/" && search !== null) search.focus();
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else return;
    event.preventDefault();
  });

  // Irreversible actions ask for confirmation.
  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.confirm;
    if (question !== undefined && !window.confirm(question)) event.preventDefault();
  });

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener !== null) document.getElementById(opener.dataset.open).showModal();
  });

  // A refreshed list keeps the focus on the link with the same address.
  document.addEventListener("htmx:beforeSwap", () => {
    const focused = document.activeElement;
    const href = focused !== null && focused.matches("table.list a") ? focused.getAttribute("href") : null;
    if (href !== null)
      document.addEventListener("htmx:afterSettle", () => document.querySelector(`table.list a[href="${CSS.escape(href)}"]`)?.focus(), { once: true });
  });
})();
