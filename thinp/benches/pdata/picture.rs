//! Costs against mappings, both logarithmic, as SVG.

use std::fmt::Write;

/// One measurement.
pub struct Point {
    pub mappings: u64,
    pub cost_ns: u64,
}

/// One operation.
pub struct Curve {
    pub name: &'static str,
    pub points: Vec<Point>,
}

const LEFT: f64 = 80.0;
const TOP: f64 = 50.0;
const DECADE_WIDTH: f64 = 130.0;
const DECADE_HEIGHT: f64 = 90.0;
const NAMES_WIDTH: f64 = 270.0;
const COLOURS: [&str; 5] = ["#4477aa", "#66ccee", "#228833", "#aa3377", "#ccbb44"];

/// Powers of ten on the axes.
const X_DECADES: std::ops::RangeInclusive<i32> = 3..=7;
const Y_DECADES: std::ops::RangeInclusive<i32> = 1..=6;

fn x(mappings: u64) -> f64 {
    LEFT + ((mappings as f64).log10() - f64::from(*X_DECADES.start())) * DECADE_WIDTH
}

fn y(cost_ns: f64) -> f64 {
    TOP + (f64::from(*Y_DECADES.end()) - cost_ns.max(10.0).log10()) * DECADE_HEIGHT
}

fn time(decade: i32) -> &'static str {
    ["1 ns", "10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms"][decade as usize]
}

pub fn draw(curves: &[Curve]) -> String {
    let right = x(10u64.pow(*X_DECADES.end() as u32));
    let bottom = y(10f64.powi(*Y_DECADES.start()));
    let (width, height) = (right + NAMES_WIDTH, bottom + 60.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"16\">What metadata operations cost, in processor time</text>\n"
    );
    for decade in X_DECADES {
        let at = x(10u64.pow(decade as u32));
        let _ = writeln!(svg, "<path d=\"M{at} {TOP}V{bottom}\" stroke=\"#ddd\"/>");
        let label = bottom + 20.0;
        let _ = writeln!(
            svg,
            "<text x=\"{at}\" y=\"{label}\" text-anchor=\"middle\">10<tspan dy=\"-5\" font-size=\"9\">{decade}</tspan></text>"
        );
    }
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">mappings of the volume</text>", bottom + 42.0);
    for decade in Y_DECADES {
        let at = y(10f64.powi(decade));
        let _ = writeln!(svg, "<path d=\"M{LEFT} {at}H{right}\" stroke=\"#ddd\"/>");
        let (left, baseline) = (LEFT - 8.0, at + 4.0);
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>", time(decade));
    }
    for (curve, colour) in curves.iter().zip(COLOURS) {
        draw_curve(&mut svg, curve, colour);
    }
    for (curve, (at, colour)) in curves.iter().zip(name_places(curves).into_iter().zip(COLOURS)) {
        let left = right + 12.0;
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"{at}\" fill=\"{colour}\">{}</text>", curve.name);
    }
    svg + "</svg>\n"
}

fn draw_curve(svg: &mut String, curve: &Curve, colour: &str) {
    let places: Vec<_> = curve.points.iter().map(|point| (x(point.mappings), y(point.cost_ns as f64))).collect();
    let line: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ =
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", line.join(" "));
    for ((x, y), point) in places.iter().zip(&curve.points) {
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"><title>{}: {} ns with {} mappings</title></circle>",
            curve.name, point.cost_ns, point.mappings
        );
    }
}

/// Where the names go, at the ends of their curves but not over each other.
fn name_places(curves: &[Curve]) -> Vec<f64> {
    let ends = curves.iter().map(|curve| curve.points.last().map_or(0.0, |point| y(point.cost_ns as f64) + 4.0));
    let mut order: Vec<(usize, f64)> = ends.enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (mut places, mut least) = (vec![0.0; curves.len()], 0.0f64);
    for (curve, end) in order {
        places[curve] = end.max(least);
        least = places[curve] + 16.0;
    }
    places
}
