// Whether the Jobs panel is open: its button and its keys know it, and so does the panel.
const root = document.documentElement;
export const toggle = () => document.querySelector("[data-jobs-toggle]");
const place = () => document.getElementById("jobs-panel");

export const opening = {
  // Tells the studio; the button says how, once it is there.
  ask: () => {},
  // Whether whoever opened the panel is still to be led to it.
  focusWanted: false,
};

export const isOpen = () => root.dataset.jobs === "open";

export const within = () => Boolean(place()?.contains(document.activeElement));

export const say = () => toggle()?.setAttribute("aria-expanded", String(isOpen()));

export const open = () => {
  root.dataset.jobs = "open";
  say();
  opening.focusWanted = true;
  opening.ask({ do: "open" });
};

export const close = () => {
  const inside = within();
  delete root.dataset.jobs;
  say();
  opening.ask({ do: "close" });
  if (inside) toggle()?.focus();
};
