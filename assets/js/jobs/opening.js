// Whether the Jobs panel is open: its button, Alt+J, Esc and the cross agree here.
const root = document.documentElement;

/** How the studio is told; set by the button. */
export const studio = { tell() {} };

export const toggle = () => document.querySelector("[data-jobs-toggle]");
export const place = () => document.getElementById("jobs-panel");
export const isOpen = () => root.dataset.jobs === "open";

/** What was just opened gets the focus once it is drawn. */
export const wanted = { focus: false };

/** The studio draws the button anew, and knows nothing of what is open. */
export function say() {
  toggle()?.setAttribute("aria-expanded", String(isOpen()));
}

export function open() {
  root.dataset.jobs = "open";
  say();
  wanted.focus = true;
  studio.tell({ do: "open" });
}

export function close() {
  const within = place()?.contains(document.activeElement);
  delete root.dataset.jobs;
  say();
  studio.tell({ do: "close" });
  if (within) toggle()?.focus();
}
