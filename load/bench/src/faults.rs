//! What was found to be otherwise than it should be. Told at the end, so that the rows behind it are printed as well.

use anyhow::ensure;

/// What a run found fault with.
#[derive(Default)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Takes note where a figure is larger than what it is held to.
    pub fn at_most(&mut self, what: &str, figure: f64, most: f64) {
        // Also where it is no number: then nothing was measured.
        if figure.is_nan() || figure > most {
            self.0.push(format!("{what}: {figure:.2}, and it is held to {most} at most"));
        }
    }

    /// Takes note where a figure is smaller than what it is held to.
    pub fn at_least(&mut self, what: &str, figure: f64, least: f64) {
        if figure.is_nan() || figure < least {
            self.0.push(format!("{what}: {figure:.2}, and it is held to {least} at least"));
        }
    }

    /// Takes note of calls that were answered otherwise than they should be.
    pub fn unexpected(&mut self, what: &str, calls: usize) {
        if calls > 0 {
            self.0.push(format!("{what}: {calls} calls were answered otherwise than they should be"));
        }
    }

    /// What came of the run.
    ///
    /// # Errors
    /// Where anything was found, with all of it.
    pub fn verdict(self) -> anyhow::Result<()> {
        ensure!(self.0.is_empty(), "{}", self.0.join("\n"));
        Ok(())
    }
}
