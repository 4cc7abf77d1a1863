package jenkins.model

/** Manage Jenkins, System, Jenkins Location. */
class JenkinsLocationConfiguration {
    static JenkinsLocationConfiguration get() {
        return new JenkinsLocationConfiguration()
    }

    String getUrl() {
        return Jenkins.get().truth().location
    }
}
