// Each tab is found again where it was left.
const places = {};
let tab = "";
const chosen = () => document.querySelector("#rail [role=tab][aria-selected=true]")?.id ?? "";
addEventListener(
  "scroll",
  () => {
    tab ||= chosen();
    if (tab && chosen() === tab) places[tab] = scrollY;
  },
  { passive: true },
);
new MutationObserver(() => {
  const now = chosen();
  if (!now || now === tab) return;
  // Read before the browser moves by itself to fit the other page.
  const to = places[now] ?? 0;
  tab = now;
  if (window.studioReady) requestAnimationFrame(() => scrollTo(0, to));
}).observe(document.body, { subtree: true, attributeFilter: ["aria-selected"] });
