// The Jobs panel: its button in the header, Alt+J from everywhere, Esc and the cross close it.
const root = document.documentElement;
const toggle = () => document.querySelector("[data-jobs-toggle]");
const place = () => document.getElementById("jobs-panel");
let ask = () => {};
let focusWanted = false;

const isOpen = () => root.dataset.jobs === "open";

const say = () => toggle()?.setAttribute("aria-expanded", String(isOpen()));

function open() {
  root.dataset.jobs = "open";
  say();
  focusWanted = true;
  ask({ do: "open" });
}

function close() {
  const within = place()?.contains(document.activeElement);
  delete root.dataset.jobs;
  say();
  ask({ do: "close" });
  if (within) toggle()?.focus();
}

/** What the button in the header does. */
export function chip(element, send, watch) {
  ask = send;
  // The answer of the studio draws the button anew: closed, as it knows nothing of the page.
  watch("value", say);
  element.addEventListener("click", (event) => {
    if (event.target.closest("[data-jobs-toggle]")) (isOpen() ? close : open)();
  });
  document.addEventListener("keydown", (event) => {
    if (event.altKey && !event.ctrlKey && !event.metaKey && event.code === "KeyJ") {
      event.preventDefault();
      (isOpen() ? close : open)();
    } else if (event.key === "Escape" && place()?.contains(document.activeElement)) {
      event.stopPropagation();
      close();
    }
  }, true);
}

/** What the buttons of the panel do. */
export function panel(element, send, watch) {
  let pressed = null;
  const press = (target) => {
    const { do: what, name, value } = target.dataset;
    pressed = { what, name };
    send({ do: what, name, value: target.value || value || "" });
  };
  element.addEventListener("click", (event) => {
    if (event.target.closest("[data-jobs-close]")) close();
    const button = event.target.closest("button[data-do]");
    if (button) press(button);
  });
  element.addEventListener("change", (event) => {
    if (event.target.matches("select[data-do]")) press(event.target);
  });
  watch("value", () => requestAnimationFrame(() => {
    const title = document.getElementById("jobs-title");
    if (focusWanted && title) {
      title.focus();
      focusWanted = false;
    } else if (pressed && isOpen() && document.activeElement === document.body) {
      // The job went to another list with its button: the focus goes along, or to the title.
      const row = element.querySelector(`[data-job="${CSS.escape(pressed.name ?? "")}"]`);
      (row?.querySelector("button, select, a") ?? title)?.focus();
      pressed = null;
    }
  }));
}
