(function () {
  var place = document.getElementById("live"), said = document.getElementById("said");
  var tag = place.getAttribute("data-tag");
  function later() { setTimeout(ask, document.hidden ? 10000 : 1500); }
  function show(html) {
    var held = document.activeElement && place.contains(document.activeElement) && document.activeElement.id;
    var across = {};
    place.querySelectorAll(".scroll").forEach(function (box) { across[box.id] = box.scrollLeft; });
    place.innerHTML = html;
    place.querySelectorAll(".scroll").forEach(function (box) { box.scrollLeft = across[box.id] || 0; });
    if (held && document.getElementById(held)) document.getElementById(held).focus({ preventScroll: true });
  }
  function ask() {
    fetch("live", { headers: { "If-None-Match": tag }, cache: "no-store" }).then(function (answer) {
      if (answer.status === 304) return null;
      if (!answer.ok) throw new Error("status " + answer.status);
      tag = answer.headers.get("ETag");
      return answer.text();
    }).then(function (html) {
      if (html !== null) show(html);
      if (said.textContent) said.textContent = "";
      later();
    }, function () {
      said.textContent = "The server does not answer. Was it ended? This page shows the last that it said.";
      later();
    });
  }
  later();
})();
