// What works everywhere on the page. Each part of a tab is called by the component it belongs to.
import "./page/theme.js";
import "./page/keys.js";
import "./page/places.js";
import "./page/form.js";
import "./page/toasts.js";
import "./page/alive.js";
