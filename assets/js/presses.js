// Buttons with [data-do] say what is wanted, and in [data-name] of what.
export const presses = (element, then) =>
  element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button && !button.disabled) then(button.dataset.do, button);
  });
