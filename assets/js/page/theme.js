// The theme: dark unless somebody chose light, whatever the system prefers.
const root = document.documentElement;
const remember = (theme) => {
  try {
    localStorage.setItem("pixart-studio-theme", theme);
  } catch {
    /* private window */
  }
};
const apply = () => {
  const light = root.dataset.theme === "light";
  if (document.body.classList.contains("dark") === light)
    document.body.classList.toggle("dark", !light);
  for (const button of document.querySelectorAll("[data-theme-toggle]"))
    button.setAttribute("aria-pressed", String(light));
};
// gradio follows the system's theme when it starts; ours is the one that was chosen.
new MutationObserver(apply).observe(document.body, { attributeFilter: ["class"] });
apply();

document.addEventListener("click", (event) => {
  if (!event.target.closest("[data-theme-toggle]")) return;
  root.dataset.theme = root.dataset.theme === "light" ? "dark" : "light";
  remember(root.dataset.theme);
  apply();
});
