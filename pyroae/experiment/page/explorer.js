"use strict";
{
  const element = document.getElementById("atlas");
  if (element) explore(JSON.parse(element.textContent), JSON.parse(document.getElementById("colours").textContent));

  function explore(atlas, colours) {
    const plane = document.getElementById("plane"), decoded = document.getElementById("decoded");
    const where = document.getElementById("where"), sprite = new Image();
    const [height, width] = atlas.tile, last = atlas.side - 1;
    const kinds = atlas.labels ? [...new Set(atlas.labels)].sort((a, b) => a - b) : [];
    const few = kinds.length <= colours.length;
    let at = [last / 2, last / 2].map(Math.round);  // column from the left, row from the bottom

    const share = (value, i) => (value - atlas.low[i]) / (atlas.high[i] - atlas.low[i]);
    const value = (i) => atlas.low[i] + (at[i] / last) * (atlas.high[i] - atlas.low[i]);
    const pixel = ([x, y]) => [share(x, 0) * plane.width, (1 - share(y, 1)) * plane.height];
    const colour = (label) => few ? colours[kinds.indexOf(label)]
      : `hsl(${240 - 180 * kinds.indexOf(label) / (kinds.length - 1)} 70% 50%)`;

    function drawPlane() {
      const pen = plane.getContext("2d");
      pen.clearRect(0, 0, plane.width, plane.height);
      atlas.dots.forEach((dot, i) => {
        const [x, y] = pixel(dot);
        pen.fillStyle = atlas.labels ? colour(atlas.labels[i]) : colours[0];
        pen.beginPath();
        pen.arc(x, y, 3, 0, 2 * Math.PI);
        pen.fill();
      });
      if (few) kinds.forEach(name);
      const [x, y] = pixel([value(0), value(1)]);
      pen.strokeStyle = "black";
      pen.lineWidth = 1;
      pen.strokeRect(x - 8, y - 8, 16, 16);
    }

    function name(kind) {
      const pen = plane.getContext("2d"), own = atlas.dots.filter((_, i) => atlas.labels[i] === kind);
      const [x, y] = pixel([0, 1].map((i) => own.map((dot) => dot[i]).sort((a, b) => a - b)[own.length >> 1]));
      pen.font = "bold 16px system-ui, sans-serif";
      pen.textAlign = "center";
      pen.lineWidth = 4;
      pen.strokeStyle = "white";
      pen.strokeText(kind, x, y);
      pen.fillStyle = "black";
      pen.fillText(kind, x, y);
    }

    function nearest() {
      const [x, y] = pixel([value(0), value(1)]);
      const away = atlas.dots.map((dot) => { const [a, b] = pixel(dot); return (a - x) ** 2 + (b - y) ** 2; });
      return atlas.labels[away.indexOf(Math.min(...away))];
    }

    function show() {
      const pen = decoded.getContext("2d");
      pen.imageSmoothingEnabled = false;
      pen.drawImage(sprite, at[0] * width, (last - at[1]) * height, width, height, 0, 0, decoded.width, decoded.height);
      const point = [0, 1].map((i) => `${atlas.names[i].split(",")[0]} = ${value(i).toFixed(2)}`).join(", ");
      where.textContent = point + (atlas.labels && atlas.dots.length ? `; nearest test example: ${nearest()}` : "");
      if (atlas.numbers) {
        const cells = document.querySelectorAll("#numbers td:last-child");
        atlas.numbers.rows[(last - at[1]) * atlas.side + at[0]].forEach((text, i) => { cells[i].textContent = text; });
      }
      drawPlane();
    }

    function move(column, row) {
      at = [column, row].map((step) => Math.min(last, Math.max(0, Math.round(step))));
      show();
    }

    plane.addEventListener("pointermove", (event) => {
      const box = plane.getBoundingClientRect();
      move((event.clientX - box.left) / box.width * last, (1 - (event.clientY - box.top) / box.height) * last);
    });
    plane.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      move(at[0] + step[0], at[1] + step[1]);
    });
    sprite.addEventListener("load", show);
    sprite.src = atlas.png;
    if (width !== height && atlas.image) decoded.height = Math.round(decoded.width * height / width);
  }
}
