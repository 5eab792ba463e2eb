document.querySelectorAll("[data-overlay]").forEach(function (box) {
  var slider = box.querySelector("input[type=range]");
  var scope = box.closest("[data-overlay-scope]");
  slider.disabled = false;
  box.hidden = false;
  slider.addEventListener("input", function () {
    scope.style.setProperty("--overlay", slider.value / 100);
  });
});
