//! A server whose clock can be set, while it runs: a small library is loaded before it, in front of the system's.

use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::Context;
use anyhow::ensure;

use crate::Cluster;

/// The clock of a server.
#[derive(Debug)]
pub struct Clock {
    file: File,
    library: String,
    path: String,
}

impl Clock {
    /// A clock for a server, which has it from its next start with [`Clock::start`] on. Takes a C compiler, as the server's extension does.
    ///
    /// # Errors
    /// When there is none, or the files cannot be written.
    pub fn of(server: &Cluster) -> anyhow::Result<Self> {
        let folder = server.folder();
        let (source, library, path) = (folder.join("clock.c"), folder.join("clock.so"), folder.join("clock"));
        std::fs::write(&source, include_str!("clock.c"))?;
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
        ensure!(built.context("failed to run cc")?.success(), "the clock cannot be compiled");
        // The server maps the file: it stays where it is.
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        let clock = Self { file, library: library.display().to_string(), path: path.display().to_string() };
        clock.set(0)?;
        Ok(clock)
    }

    /// The clock is so many seconds ahead of the machine's from now on.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set(&self, ahead: i64) -> anyhow::Result<()> {
        self.file.write_all_at(&ahead.to_ne_bytes(), 0).context("failed to set the clock")
    }

    /// Starts the server with the clock.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, server: &Cluster) -> anyhow::Result<()> {
        server.start_with(&[("LD_PRELOAD", &self.library), ("CLOCK_FILE", &self.path)])
    }
}
