// What a page does beyond showing itself; without it everything is there, unfolded.
(function () {
  "use strict";
  var root = document.documentElement;

  function each(selector, within, act) {
    Array.prototype.forEach.call((within || document).querySelectorAll(selector), act);
  }

  function made(tag, text, attributes) {
    var element = document.createElement(tag);
    element.textContent = text;
    Object.keys(attributes || {}).forEach(function (name) { element.setAttribute(name, attributes[name]); });
    return element;
  }

  // the opacity of labels
  each("[data-overlay]", null, function (box) {
    var slider = box.querySelector("input[type=range]");
    var scope = box.closest("[data-overlay-scope]");
    slider.disabled = false;
    box.hidden = false;
    slider.addEventListener("input", function () {
      scope.style.setProperty("--overlay", slider.value / 100);
    });
  });

  // light and dark: as the system has it, until one is chosen
  var themes = ["auto", "light", "dark"];
  function kept(value) {
    try {
      if (value) { localStorage.setItem("replaygen-theme", value); }
      return localStorage.getItem("replaygen-theme");
    } catch (refused) { return null; }
  }
  function dress(button, theme) {
    if (theme === "auto") { root.removeAttribute("data-theme"); } else { root.setAttribute("data-theme", theme); }
    button.textContent = { auto: "Light or dark", light: "Light", dark: "Dark" }[theme];
    button.setAttribute("aria-label", "Colours: " + (theme === "auto" ? "as the system has them" : theme) + ". Change");
  }
  each("[data-theme-switch]", null, function (button) {
    var theme = themes.indexOf(kept()) > 0 ? kept() : "auto";
    dress(button, theme);
    button.hidden = false;
    button.addEventListener("click", function () {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      kept(theme);
      dress(button, theme);
    });
  });

  // lists in pages, and filters over them
  each("[data-pages]", null, function (box) {
    var most = Number(box.dataset.pages);
    var items = Array.prototype.slice.call(box.querySelectorAll("[data-items] > li"));
    var filters = Array.prototype.slice.call(box.querySelectorAll("select[data-filter]"));
    var place = 0;
    var back = made("button", "‹ Previous", { type: "button" });
    var on = made("button", "Next ›", { type: "button" });
    var told = made("span", "", { role: "status" });
    var bar = made("div", "", { "class": "rg-pager" });
    bar.append(back, told, on);
    each(".rg-filters", box, function (form) { form.hidden = false; });
    if (items.length <= most && !filters.length) { return; }
    box.insertBefore(bar, box.querySelector("[data-items]"));

    function show(first) {
      var fit = items.filter(function (item) {
        return filters.every(function (filter) {
          return !filter.value || item.getAttribute("data-" + filter.dataset.filter) === filter.value;
        });
      });
      place = Math.max(0, Math.min(first, fit.length - 1));
      var seen = fit.slice(place, place + most);
      items.forEach(function (item) { item.classList.toggle("rg-away", seen.indexOf(item) < 0); });
      back.disabled = place === 0;
      on.disabled = place + most >= fit.length;
      back.hidden = on.hidden = fit.length <= most;
      told.textContent = fit.length > most ? (place + 1) + "–" + (place + seen.length) + " of " + fit.length
        : fit.length + " shown";
    }
    back.addEventListener("click", function () { show(place - most); });
    on.addEventListener("click", function () { show(place + most); });
    filters.forEach(function (filter) { filter.addEventListener("change", function () { show(0); }); });
    show(0);
  });

  // a confusion's images, in a window over the page
  var windowed = document.getElementById("rg-window");
  var openers = Array.prototype.slice.call(document.querySelectorAll("a[data-opens]"));
  if (windowed && windowed.showModal && openers.length) {
    var body = windowed.querySelector("[data-body]");
    var at = -1;
    var fill = function (next) {
      var source = document.getElementById(openers[next].dataset.opens);
      if (!source) { return false; }
      var copy = source.cloneNode(true);
      copy.removeAttribute("id");
      at = next;
      body.replaceChildren.apply(body, Array.prototype.slice.call(copy.childNodes));
      windowed.scrollTop = 0;
      windowed.setAttribute("aria-label", openers[next].getAttribute("aria-label"));
      return true;
    };
    var step = function (by) {
      var own = openers[at].dataset.of;
      for (var next = at + by; next >= 0 && next < openers.length; next += by) {
        if (openers[next].dataset.of === own) { fill(next); return; }
      }
    };
    openers.forEach(function (opener, i) {
      opener.addEventListener("click", function (event) {
        if (event.ctrlKey || event.metaKey || event.shiftKey || !fill(i)) { return; }
        event.preventDefault();
        windowed.showModal();
      });
    });
    windowed.querySelector("[data-back]").addEventListener("click", function () { step(-1); });
    windowed.querySelector("[data-on]").addEventListener("click", function () { step(1); });
    windowed.querySelector("[data-close]").addEventListener("click", function () { windowed.close(); });
    windowed.addEventListener("click", function (event) { if (event.target === windowed) { windowed.close(); } });
    windowed.addEventListener("keydown", function (event) {
      if (event.target.type === "range") { return; }
      if (event.key === "ArrowLeft") { step(-1); } else if (event.key === "ArrowRight") { step(1); }
    });
    windowed.addEventListener("close", function () { if (at >= 0) { openers[at].focus(); } });
  }
})();
