//! Plots as SVG.

use std::path::Path;

use anyhow::anyhow;
use plotters::coord::ranged1d::AsRangedCoord;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

use crate::figure::Plot;
use crate::figure::number;

const SIZE: (u32, u32) = (760, 420);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(127, 127, 127),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
];

/// Draws a plot into a file.
///
/// # Errors
/// When there is nothing to draw or the file cannot be written.
pub fn draw(plot: &Plot, file: &Path) -> anyhow::Result<()> {
    let values = plot.lines.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
    let values: Vec<f64> = values.chain(plot.bars.iter().map(|bar| bar.1)).collect();
    let most = values.iter().copied().fold(0.0, f64::max);
    let least = values.iter().copied().filter(|&value| value > 0.0).fold(most, f64::min);
    anyhow::ensure!(most > 0.0, "there is nothing to draw in {}", plot.name);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    let drawn = if plot.log {
        shape(plot, &root, (least / 2.0..most * 2.0).log_scale())
    } else {
        shape(plot, &root, 0.0..most * 1.1)
    };
    drawn.map_err(|error| anyhow!("failed to draw {}: {error}", plot.name))
}

fn shape<Y>(
    plot: &Plot,
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    y: Y,
) -> Result<(), Box<dyn std::error::Error>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    root.fill(&WHITE)?;
    let points = || plot.lines.iter().flat_map(|(_, points)| points);
    let x_most = if plot.bars.is_empty() {
        points().map(|point| point.0).fold(0.0, f64::max)
    } else {
        plot.bars.len() as f64
    };
    let mut chart = ChartBuilder::on(root)
        .caption(&plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..x_most, y)?;
    let format_y = |value: &f64| number(*value);
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(plot.x).y_desc(plot.y).y_label_formatter(&format_y).light_line_style(WHITE);
    if !plot.bars.is_empty() {
        mesh.disable_x_mesh().x_labels(0);
    }
    mesh.draw()?;
    for (at, (name, points)) in plot.lines.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    for (at, (name, value)) in plot.bars.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        // From the foot of the plot, wherever that is on a logarithmic axis.
        let left = at as f64 + 0.15;
        chart
            .draw_series([Rectangle::new(
                [(left, f64::MIN_POSITIVE), (left + 0.7, *value)],
                colour.filled(),
            )])?
            .label(format!("{name}: {}", number(*value)))
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_lines_and_an_empty_one_is_refused() {
        let mut plot = Plot {
            name: "test",
            title: "A title".to_owned(),
            x: "x",
            y: "y",
            log: true,
            lines: vec![("a line".to_owned(), vec![(0.0, 1.0), (1.0, 1_000.0)])],
            bars: Vec::new(),
        };
        let file = std::env::temp_dir().join(format!("pg_task_plot_{}.svg", std::process::id()));
        draw(&plot, &file).expect("it is drawn");
        let text = std::fs::read_to_string(&file).expect("it is there");
        std::fs::remove_file(&file).expect("it can be removed");
        assert!(text.contains("A title") && text.contains("a line") && text.contains("<polyline"));
        plot.lines.clear();
        assert!(draw(&plot, &file).is_err());
    }
}
