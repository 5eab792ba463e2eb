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

  // what scrolls sideways fades where it goes on
  each(".scroll, nav .links", null, function (box) {
    function fade() {
      var rest = box.scrollWidth - box.clientWidth - box.scrollLeft;
      box.classList.toggle("rg-right", rest > 2);
      box.classList.toggle("rg-left", box.scrollLeft > 2);
    }
    box.addEventListener("scroll", fade, { passive: true });
    if (window.ResizeObserver) { new ResizeObserver(fade).observe(box); } else { fade(); }
  });

  // lists in pages, and filters over them; a last page of a few is added to the one before
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
      var pages = Math.max(1, Math.ceil((fit.length - most / 4 + 1) / most));
      place = Math.max(0, Math.min(first, (pages - 1) * most));
      var last = place / most + 1 >= pages;
      var seen = fit.slice(place, last ? fit.length : place + most);
      items.forEach(function (item) { item.classList.toggle("rg-away", seen.indexOf(item) < 0); });
      back.disabled = place === 0;
      on.disabled = last;
      back.hidden = on.hidden = pages === 1;
      told.textContent = pages > 1 ? (place + 1) + "–" + (place + seen.length) + " of " + fit.length
        : fit.length + " shown";
    }
    back.addEventListener("click", function () { show(place - most); });
    on.addEventListener("click", function () { show(place + most); });
    filters.forEach(function (filter) { filter.addEventListener("change", function () { show(0); }); });
    show(0);
  });

  // in a window over the page: the images of a confusion, or one prediction large
  var windowed = document.getElementById("rg-window");
  if (!windowed || !windowed.showModal) { return; }
  var body = windowed.querySelector("[data-body]");
  var openers = [];  // {element, of: those turned through together, named, fill: what stands in the window}
  var at = -1;

  function fill(next) {
    var filled = openers[next].fill();
    if (!filled) { return false; }
    at = next;
    body.replaceChildren.apply(body, filled);
    windowed.scrollTop = 0;
    windowed.setAttribute("aria-label", openers[next].named);
    return true;
  }
  function step(by) {
    var own = openers[at].of;
    for (var next = at + by; next >= 0 && next < openers.length; next += by) {
      if (openers[next].of === own) { fill(next); return; }
    }
  }
  var tools = document.querySelector("nav .tools");
  var home = tools && tools.parentNode;
  function open(next) {
    if (!fill(next)) { return false; }
    if (tools) {  // the page's own switch is used in the window; the place that it leaves keeps its height
      home.style.minHeight = home.offsetHeight + "px";
      windowed.querySelector(".top").prepend(tools);
    }
    windowed.showModal();
    return true;
  }
  function opens(element, of, named, filled) {
    var own = openers.push({ element: element, of: of, named: named, fill: filled }) - 1;
    element.addEventListener("click", function (event) {
      if (event.ctrlKey || event.metaKey || event.shiftKey) { return; }
      if (open(own)) { event.preventDefault(); }
    });
  }

  each("a[data-opens]", null, function (link) {
    opens(link, link.dataset.of, link.getAttribute("aria-label"), function () {
      var source = document.getElementById(link.dataset.opens);
      return source && Array.prototype.slice.call(source.cloneNode(true).childNodes);
    });
  });

  each(".scene", null, function (scene) {
    var given = scene.querySelectorAll(".given .shot");
    var legend = document.querySelector("#scenes .rg-legend");
    each(".cell .shot", scene, function (shot) {
      var named = shot.querySelector("img").alt;
      var button = made("button", "", { type: "button", "class": "enlarge", "aria-haspopup": "dialog" });
      shot.parentNode.insertBefore(button, shot);
      button.append(shot);
      opens(button, scene, named, function () {
        var shown = made("div", "", { "class": "large", style: scene.getAttribute("style") });
        [[given[0], "image"], [given[1], "truth"], [shot, "prediction"]].forEach(function (one) {
          var part = made("div", "");
          part.append(one[0].cloneNode(true), made("small", one[1]));
          shown.append(part);
        });
        var told = scene.querySelector(".given small").cloneNode(true);
        var words = made("p", "", { "class": "quiet" });
        words.append.apply(words, Array.prototype.slice.call(told.childNodes));
        return [made("h4", named), words].concat(legend ? [legend.cloneNode(true)] : [], [shown]);
      });
    });
  });

  windowed.querySelector("[data-back]").addEventListener("click", function () { step(-1); });
  windowed.querySelector("[data-on]").addEventListener("click", function () { step(1); });
  windowed.querySelector("[data-close]").addEventListener("click", function () { windowed.close(); });
  windowed.addEventListener("click", function (event) { if (event.target === windowed) { windowed.close(); } });
  windowed.addEventListener("keydown", function (event) {
    if (event.target.type === "range" || event.target.type === "radio") { return; }
    if (event.key === "ArrowLeft") { step(-1); } else if (event.key === "ArrowRight") { step(1); }
  });
  windowed.addEventListener("close", function () {
    if (tools) {
      home.append(tools);
      home.style.minHeight = "";
    }
    if (at >= 0) { openers[at].element.focus(); }
  });
})();
